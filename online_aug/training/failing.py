"""One rank fails, all end: each node says the first error, and says it once."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from online_aug.command_line import LAUNCHER_S
from online_aug.errors import RunError, one_line
from online_aug.training.distributed import World, barrier

FAILURE_FILE = ".failure"
"""In the run directory, which all nodes share: which rank failed first, and why."""
_FROM_OTHERS = ("gloo", "NCCL", "onnection", "Broken pipe")
"""Words in what torch says when another rank is gone."""


@contextmanager
def failing_together(world: World, run_directory: Path) -> Iterator[None]:
    """Note why this rank fails; where another one did, fail with its reason.

    All ranks enter it. A rank that lost another waits for its launcher first, which ends it without
    a word if the one that failed is on the same node.

    Raises:
        RunError: If another rank ended early.
    """
    place = run_directory / FAILURE_FILE
    if world.is_first:
        place.unlink(missing_ok=True)
    barrier(world)
    try:
        yield
    except Exception as error:
        if world.world_size == 1:
            raise
        if not _is_from_others(error):
            _note(place, f"rank {world.rank} ended the run: {one_line(error)}")
            raise
        time.sleep(LAUNCHER_S)
        raise RunError(_noted(place)) from None


def _is_from_others(error: Exception) -> bool:
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _FROM_OTHERS)


def _note(place: Path, text: str) -> None:
    try:
        with place.open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError:  # another rank was first, or nothing can be written: it is said here at least
        return


def _noted(place: Path) -> str:
    try:
        return place.read_text(encoding="utf-8")
    except OSError:
        return "another rank ended the run without a word; it may have been killed"
