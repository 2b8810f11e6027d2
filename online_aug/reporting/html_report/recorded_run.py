"""Read back the files of a run directory for a report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from online_aug.classifier.evaluation import Evaluation
from online_aug.config.schema import fields, method_fields, shown
from online_aug.documents import DocumentError, read_object, read_text
from online_aug.errors import UserError
from online_aug.files import from_json
from online_aug.reporting.metrics import METRICS_FILE, EpochMetrics, Summary, read_metrics
from online_aug.reporting.run_directory import (
    CONFIG_FILE,
    ENVIRONMENT_FILE,
    EVALUATION_FILE,
    SUMMARY_FILE,
    read_settings,
    read_summary,
)
from online_aug.reporting.samples import Samples, read_samples

NAMES_A_RUN = frozenset({"run.name", "run.dir"})
"""Keys that say nothing about what was trained."""


@dataclass(frozen=True, kw_only=True)
class RecordedRun:
    """The files of one run; a run that still trains has no summary yet."""

    folder: Path
    settings: Mapping[str, Any]
    """Every key of the configuration by its dotted path."""
    config_text: str
    epochs: Sequence[EpochMetrics]
    """The epochs trained so far, at least one."""
    summary: Summary | None = None
    evaluation: Evaluation | None = None
    samples: Samples = field(default_factory=lambda: Samples(looked_at=0, samples=[]))
    environment: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name of the run directory."""
        return self.folder.resolve().name

    @property
    def source(self) -> str:
        """The data set."""
        return str(self.settings.get("data.source", ""))

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes of the test split; empty as long as the run trains."""
        return () if self.summary is None else tuple(self.summary.per_class)

    @property
    def seed(self) -> int:
        """The training seed."""
        return int(self.settings.get("run.seed", 0))

    @property
    def is_vanilla(self) -> bool:
        """Whether the run served no synthetic images."""
        keys = ("mixing.synthetic_probability", "mixing.final_probability")
        by_class = "mixing.class_probability."
        return not any(
            value for key, value in self.settings.items() if key in keys or key.startswith(by_class)
        )

    @property
    def length(self) -> int:
        """Epochs that the run is to have."""
        return int(self.settings.get("run.epochs", len(self.epochs)))

    @cached_property
    def changed(self) -> dict[str, tuple[str, str]]:
        """The keys whose values are not the defaults, with value and default as text."""
        defaults = self._defaults
        return {
            key: (shown(value), shown(defaults[key]) if key in defaults else "-")
            for key, value in self.settings.items()
            if key not in NAMES_A_RUN and (key not in defaults or value != defaults[key])
        }

    @property
    def _defaults(self) -> dict[str, Any]:
        known = {key: each["default"] for key, each in fields().items() if "default" in each}
        try:
            own = method_fields(str(self.settings.get("method.name", "")))
        except UserError:  # a method of a file that is no longer there
            own = {}
        known |= {f"method.{key}": each.get("default") for key, each in own.items()}
        return known


def read_run(folder: Path) -> RecordedRun:
    """Read a run directory.

    Raises:
        UserError: If it is not the directory of a run, no epoch is finished, or a file in it is not
            what this version writes.
    """
    if not folder.is_dir():
        raise UserError(f"a run must be a folder, not found: {folder}")
    if not (folder / CONFIG_FILE).is_file():
        raise UserError(f"a run directory must hold {CONFIG_FILE}, {folder} does not")
    try:
        epochs = read_metrics(folder)
    except FileNotFoundError:
        epochs = []
    if not epochs:
        raise UserError(f"{folder / METRICS_FILE} must hold at least one epoch, got none: train on")
    is_over = (folder / SUMMARY_FILE).exists()
    settings = read_settings(folder)
    for key in ("run.seed", "run.epochs"):
        if not isinstance(settings.get(key, 0), int):
            raise UserError(f"{folder / CONFIG_FILE} must give {key} as a whole number")
    return RecordedRun(
        folder=folder,
        settings=settings,
        config_text=_text(folder / CONFIG_FILE),
        epochs=epochs,
        summary=read_summary(folder) if is_over else None,
        evaluation=_read_evaluation(folder) if is_over else None,
        samples=read_samples(folder),
        environment=_read_environment(folder),
    )


def _read_evaluation(folder: Path) -> Evaluation | None:
    path = folder / EVALUATION_FILE
    return from_json(Evaluation, _text(path), str(path)) if path.exists() else None


def _read_environment(folder: Path) -> Mapping[str, Any]:
    path = folder / ENVIRONMENT_FILE
    try:
        return read_object(path) if path.exists() else {}
    except DocumentError as error:
        raise UserError(f"{path} must be what a run wrote there: {error}") from None


def _text(path: Path) -> str:
    try:
        return read_text(path)
    except DocumentError as error:
        raise UserError(f"{path} must be what a run wrote there: {error}") from None
