"""The runs of a comparison: what each is to be, whether it is finished, what came out of it."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from online_aug.config import Config
from online_aug.config.loading import find_recipe, load_config
from online_aug.diffusion.compatibility import settle
from online_aug.documents import MAX_YAML_BYTES, DocumentError, parse_yaml, read_text
from online_aug.errors import UserError
from online_aug.reporting.metrics import Summary, read_metrics
from online_aug.reporting.run_directory import CONFIG_FILE, MAY_DIFFER, is_finished, read_summary

REAL = ("run", "data", "mixing", "classifier", "optim")
"""Sections that decide a run without synthetic images."""
MAY_DIFFER_HERE = MAY_DIFFER - {"run.epochs"}
"""Keys that do not change what a comparison finds."""
OF_PROMPTS = frozenset({"data.metaclass"})
"""Keys of those sections that do not change a run without synthetic images."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The results of a finished run."""

    shares: Mapping[str, float]
    """Accuracies at the last epoch by what they are of: `test`, `worst group`, and those of classes
    with few, medium and many training images; the test split has selected nothing."""
    steps: int
    """Number of optimizer steps."""
    summary: Summary

    @property
    def serves_generated(self) -> bool:
        """Whether images of a generator were made for this run or served in it."""
        return self.summary.made > 0 or self.summary.most_served > 0


@dataclass(frozen=True)
class Run:
    """One launch: a row's overrides with one seed."""

    row: str
    seed: int
    recipe: str
    overrides: tuple[str, ...]
    folder: Path

    @property
    def title(self) -> str:
        """Row and seed in words."""
        return f"{self.row}, seed {self.seed}"

    @property
    def log(self) -> Path:
        """The file that holds what a launch said."""
        return self.folder.with_name(f"{self.folder.name}.log")

    @property
    def config(self) -> Config:
        """The configuration of the launch."""
        return settle(load_config(find_recipe(self.recipe), self.overrides))

    @property
    def is_finished(self) -> bool:
        """Whether all its epochs are done."""
        return is_finished(self.folder, self.config.run.epochs)

    def check_room(self) -> None:
        """Refuse a folder that holds a run of other settings; write nothing.

        Raises:
            UserError: If so.
        """
        file = self.folder / CONFIG_FILE
        if not file.is_file():
            return
        try:
            trained = parse_yaml(read_text(file, limit=MAX_YAML_BYTES))
        except DocumentError as error:
            raise UserError(f"{file} must be the configuration of a run: {error}") from None
        others = list(_differences(trained if isinstance(trained, dict) else {}, self.config))
        if others:
            raise UserError(
                f"{self.folder} must be free or hold this run, has another {', '.join(others)}; "
                "choose another folder for this comparison"
            )

    def outcome(self) -> Outcome:
        """Read what came out of it.

        Raises:
            UserError: If it is not finished, or a file of it cannot be read.
        """
        summary, epochs = read_summary(self.folder), read_metrics(self.folder)
        found = {"test": summary.top1, "worst group": summary.worst_group, **summary.per_shots}
        return Outcome(
            shares={name: share for name, share in found.items() if share is not None},
            steps=epochs[-1].step,
            summary=summary,
        )


class Row(NamedTuple):
    """One side of a comparison."""

    recipe: str
    """A file, or the name of a recipe of the package."""
    overrides: tuple[str, ...]


def plan_runs(
    rows: Mapping[str, Row],
    seeds: Sequence[int],
    folder: Path,
    *,
    cuts: bool = False,
) -> list[Run]:
    """Return a run for each row and seed, all rows of a seed before those of the next.

    Args:
        rows: The rows by name.
        seeds: Values of `run.seed`.
        folder: The folder of their run directories.
        cuts: Whether each seed is that of the training images too (`data.seed`).
    """
    found = []
    for seed, (title, row) in product(seeds, rows.items()):
        name = f"{re.sub('[^A-Za-z0-9.]+', '_', title).strip('_')}-seed{seed}"
        place = (f"run.dir={folder}", f"run.name={name}", f"run.seed={seed}")
        cut = (f"data.seed={seed}",) if cuts else ()
        overrides = (*row.overrides, *place, *cut)
        found.append(Run(title, seed, row.recipe, overrides, folder / name))
    return found


def without_synthetic(config: Config) -> tuple[str, ...]:
    """Return the overrides that train on real images alone, for as many optimizer steps.

    Raises:
        UserError: If the longer epochs of `mixing.policy: concat` are no multiple of the real ones.
    """
    off = (
        *("mixing.synthetic_probability=0", "mixing.final_probability=null"),
        *("mixing.class_probability={}", "mixing.imported=null"),
    )
    if config.mixing.policy != "concat":
        return off
    longer = config.data.epoch_repeats / (1 - config.mixing.synthetic_probability)
    if not round(longer, 6).is_integer():
        raise UserError(
            "mixing.synthetic_probability must be 0.5 or another value that makes epochs a "
            "multiple of the real images, to compare mixing.policy concat with vanilla, got "
            f"{config.mixing.synthetic_probability:g}"
        )
    return (*off, "mixing.policy=global", f"data.epoch_repeats={round(longer)}")


def twin_differences(twin: "Row", other: "Row") -> Iterator[str]:
    """Yield what decides a training on real images alone and differs between two rows, in words."""
    first, second = (load_config(find_recipe(row.recipe), row.overrides) for row in (twin, other))
    return _differences(first.model_dump(mode="json"), second)


def _differences(trained: Mapping[str, Any], config: Config) -> Iterator[str]:
    sections = config.model_dump(mode="json")
    may_differ = MAY_DIFFER_HERE if config.mixing.is_synthetic else MAY_DIFFER_HERE | OF_PROMPTS
    for section in sections if config.mixing.is_synthetic else REAL:
        before = _keys(trained.get(section, {}))
        for key, value in _keys(sections[section]).items():
            name = f"{section}.{key}"
            # A key that is new since then had no effect.
            if before.get(key, value) != value and name not in may_differ:
                yield f"{name} ({before[key]} there, {value} now)"


def _keys(section: Any) -> dict[str, Any]:
    return section if isinstance(section, dict) else {"list": section}
