"""Folders of images that are written once, by one process, and found again by all others."""

import shutil
from collections.abc import Callable
from pathlib import Path

from online_aug.dataloader.progress import Report, terminal_progress
from online_aug.errors import UserError
from online_aug.locking import alone

MARKER = ".online_aug_data"
"""File in a written folder: what it holds. A folder without it is not ours to replace."""


def written_once(folder: Path, mark: str, write: Callable[[Path, Report], None]) -> Path:
    """`folder`, filled by `write` unless a folder with this `mark` is already there.

    It is written aside and renamed when complete, so an interrupt leaves nothing half done. Of
    several processes that ask at once one writes and the others wait for it.

    Raises:
        UserError: If the folder cannot be written, or holds something else.
    """
    try:
        if _marked(folder) == mark:
            return folder
        with alone(folder.with_name(f".{folder.name}.lock")):
            if _marked(folder) != mark:
                _replace(folder, mark, write)
    except OSError as error:
        raise UserError(
            f"data.root must be a folder in which {folder.name} can be written, "
            f"got {folder.parent}: {error}"
        ) from error
    return folder


def _replace(folder: Path, mark: str, write: Callable[[Path, Report], None]) -> None:
    name = folder.name
    if folder.exists() and _marked(folder) is None:
        raise UserError(
            f"{folder} must be free for the data set {name}, but holds something else; "
            "move it away or choose another data.root"
        )
    fresh, stale = folder.with_name(f".{name}.new"), folder.with_name(f".{name}.old")
    for left_behind in (fresh, stale):  # by a process that was killed; the lock is ours
        shutil.rmtree(left_behind, ignore_errors=True)
    with terminal_progress(f"writing {name}") as report:
        write(fresh, report)
    (fresh / MARKER).write_text(mark)
    if folder.exists():
        folder.rename(stale)
    fresh.rename(folder)
    shutil.rmtree(stale, ignore_errors=True)


def _marked(folder: Path) -> str | None:
    marker = folder / MARKER
    return marker.read_text() if marker.is_file() else None
