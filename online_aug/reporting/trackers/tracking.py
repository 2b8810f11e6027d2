"""All trackers of a run: checked before it starts, fed while it trains, closed at its end."""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from online_aug.data.images import read_image
from online_aug.distributed.identity import LAUNCHER_VARIABLES
from online_aug.documents import DocumentError, read_object
from online_aug.errors import UserError, first_line
from online_aug.files import write_atomically
from online_aug.reporting.metrics import TENSORBOARD_TAGS, Summary, summary_scalars
from online_aug.reporting.run_directory import read_settings
from online_aug.reporting.trackers.libraries import (
    Image,
    Library,
    MLflow,
    Place,
    TensorBoard,
    Trackio,
    WandB,
)

TRACKERS: dict[str, Library] = {
    "tensorboard": TensorBoard(TENSORBOARD_TAGS),
    "wandb": WandB(),
    "mlflow": MLflow(),
    "trackio": Trackio(),
}
"""By their names in `run.trackers`."""
IDS_FILE = "trackers.json"
"""Holds the ids under which trackers know the run, so that a resumed run goes on there."""


def check_trackers(names: Sequence[str]) -> None:
    """Refuse trackers that are not installed or would not take a run; nothing is written.

    Raises:
        UserError: If there are such; one line for each, with the way out.
    """
    reasons = [reason for name in names if (reason := TRACKERS[name].check()) is not None]
    if reasons:
        raise UserError("\n".join(f"run.trackers must be ready, {reason}" for reason in reasons))


def start_trackers(
    names: Sequence[str], folder: Path, first_step: int, say: Callable[[str], None]
) -> "Trackers":
    """Open the trackers of a run for its next epochs.

    Args:
        names: Keys of `TRACKERS`.
        folder: The run directory, which holds the resolved configuration.
        first_step: The first optimizer step that is logged from now on.
        say: Shows a line to the person who watches.

    Raises:
        UserError: If one of them cannot be opened.
    """
    place = Place(name=folder.name, folder=folder, first_step=first_step)
    trackers = Trackers(names, place, read_settings(folder), say)
    trackers.start()
    return trackers


class Trackers:
    """The trackers of one run; for the first rank only."""

    def __init__(
        self,
        names: Sequence[str],
        place: Place,
        settings: Mapping[str, Any],
        say: Callable[[str], None],
    ) -> None:
        """Open nothing yet.

        Args:
            names: Keys of `TRACKERS`.
            place: The run.
            settings: Its resolved configuration by dotted keys.
            say: Shows a line to the person who watches.
        """
        self._names = tuple(dict.fromkeys(names))
        self._place, self._settings, self._say = place, settings, say
        self._opened: dict[str, Any] = {}
        self._ids = _read_ids(place.folder)

    def start(self) -> None:
        """Open the trackers that may refuse, before training starts.

        Raises:
            UserError: If one of them cannot be opened.
        """
        for name in self._names:
            if TRACKERS[name].starts_first:
                self._tracker(name)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Log figures by name; a tracker that fails is named, and training goes on."""
        self._each(lambda library, tracker: library.log(tracker, values, step))

    def log_image(self, name: str, image: Image, step: int) -> None:
        """Log a picture; a tracker that fails is named, and training goes on."""
        self._each(lambda library, tracker: library.log_image(tracker, name, image, step))

    def log_end(self, gallery: Path, confusion: Image, summary: Summary, step: int) -> None:
        """Log the pictures and the single figures of a finished run."""
        if gallery.exists():
            self.log_image("served/gallery", read_image(gallery), step)
        self.log_image("test/confusion", confusion, step)
        self.log(summary_scalars(summary), step)

    def close(self) -> None:
        """End what was opened; a run that is interrupted goes on there when it is resumed."""
        opened, self._opened = self._opened, {}
        for name, tracker in opened.items():
            with self._spared(name):
                tracker.finish()

    def _each(self, act: Callable[[Library, Any], None]) -> None:
        for name in self._names:
            with self._spared(name):
                act(TRACKERS[name], self._tracker(name))

    @contextmanager
    def _spared(self, name: str) -> Iterator[None]:
        """Say what a tracker fails at: the run's own files have all of it."""
        try:
            yield
        except Exception as error:  # each library has its own kinds, and the network's
            self._say(f"warning: tracker {name} failed, training goes on: {first_line(error)}")

    def _tracker(self, name: str) -> Any:
        if name not in self._opened:
            self._opened[name] = self._open(name)
        return self._opened[name]

    def _open(self, name: str) -> Any:
        library, run_id = TRACKERS[name], self._ids.get(name)
        try:
            _be_alone()
            tracker = library.open(self._place, run_id)
            tracker.start()
            library.log_settings(tracker, self._settings, is_new=run_id is None)
            found = library.id_of(tracker)
        except Exception as error:  # each library has its own kinds, and the network's
            again = f"; remove {self._place.folder / IDS_FILE} to begin a new one" if run_id else ""
            raise UserError(
                f"run.trackers must be trackers that start, {name} does not: "
                f"{first_line(error)}{again}"
            ) from None
        if found is not None and found != run_id:
            self._ids[name] = found
            write_atomically(self._place.folder / IDS_FILE, json.dumps(self._ids) + "\n")
        return tracker


def _read_ids(folder: Path) -> dict[str, str]:
    file = folder / IDS_FILE
    if not file.exists():
        return {}
    try:
        found = read_object(file)
    except DocumentError as error:
        raise UserError(
            f"{file} must be what a run wrote there: {error}; remove it to begin new runs"
        ) from None
    return {name: value for name, value in found.items() if isinstance(value, str)}


def _be_alone() -> None:
    """Let accelerate see one process on a CPU: the first rank logs alone, its device is ours."""
    from accelerate.state import PartialState

    hidden = (*LAUNCHER_VARIABLES, "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
    before = {name: os.environ.pop(name) for name in hidden if name in os.environ}
    try:
        PartialState(cpu=True)
    finally:
        os.environ.update(before)
