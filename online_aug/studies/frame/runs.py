"""Finished runs as a study finds them: the classifier and the configuration of each."""

from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from online_aug.classifier.class_names import MODEL_FILE, class_names_in
from online_aug.classifier.model import build_classifier
from online_aug.config import Config
from online_aug.config.loading import load_config
from online_aug.errors import UserError
from online_aug.reporting.run_directory import CONFIG_FILE
from online_aug.studies.frame.images import listed


@dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """A run directory that has weights."""

    folder: Path
    config: Config
    class_names: Sequence[str]

    @property
    def name(self) -> str:
        """Name of its folder."""
        return self.folder.resolve().name

    def classifier(self) -> nn.Module:
        """Load its classifier in evaluation mode, on the CPU."""
        settings = self.config.classifier.model_copy(
            update={"checkpoint": self.folder / MODEL_FILE, "pretrained": False}
        )
        count, side = len(self.class_names), self.config.data.image_size
        return build_classifier(settings, count, image_size=side, needs_head=True).eval()


def add_runs_option(parser: ArgumentParser, otherwise: str) -> None:
    """Add the option that names finished runs.

    Args:
        parser: Gets it.
        otherwise: What is done without it.
    """
    parser.add_argument(
        "--runs",
        type=listed(Path),
        default=(),
        metavar="DIR,DIR,...",
        help=f"directories of finished runs; {otherwise}",
    )


def finished_runs(folders: Sequence[Path]) -> list[FinishedRun]:
    """Return the runs of some folders.

    Raises:
        UserError: If one is not the directory of a finished run.
    """
    return [_finished(folder) for folder in folders]


def _finished(folder: Path) -> FinishedRun:
    for name in (CONFIG_FILE, MODEL_FILE):
        if not (folder / name).is_file():
            raise UserError(f"--runs must be directories of finished runs, {folder} has no {name}")
    names = class_names_in(folder / MODEL_FILE)
    if names is None:
        raise UserError(f"--runs must hold weights that name their classes, {folder} does not")
    return FinishedRun(
        folder=folder, config=load_config(folder / CONFIG_FILE, []), class_names=names
    )
