"""Embedded data sets, written as ordinary image folders when they are first asked for."""

import fcntl
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from online_aug.dataloader.progress import Report, terminal_progress
from online_aug.errors import UserError

EMBEDDED_SETS = ("digits", "pocket_birds")
FORMATS = {"digits": 1, "pocket_birds": 1}
"""Raised when what is written changes: a folder of another format is written anew."""
MARKER = ".online_aug_data"
"""File in a written folder: name and format. A folder without it is not ours to replace."""


def write_embedded(name: str, root: Path) -> Path:
    """The folder `root/name`, written unless it is already there.

    It is written aside and renamed when complete, so an interrupt leaves nothing half done. Of
    several processes that ask at once one writes and the others wait for it.

    Raises:
        UserError: If the folder cannot be written, or holds something else.
    """
    folder = root / name
    try:
        if _marked(folder) == _mark(name):
            return folder
        with _lock(root, name):
            if _marked(folder) != _mark(name):
                _replace(folder, name)
    except OSError as error:
        raise UserError(
            f"data.root must be a folder in which {name} can be written, got {root}: {error}"
        ) from error
    return folder


def _replace(folder: Path, name: str) -> None:
    if folder.exists() and _marked(folder) is None:
        raise UserError(
            f"{folder} must be free for the embedded data set {name}, but holds something else; "
            "move it away or choose another data.root"
        )
    fresh, stale = folder.with_name(f".{name}.new"), folder.with_name(f".{name}.old")
    for left_behind in (fresh, stale):  # by a process that was killed; the lock is ours
        shutil.rmtree(left_behind, ignore_errors=True)
    with terminal_progress(f"writing {name}") as report:
        _WRITERS[name](fresh, report)
    (fresh / MARKER).write_text(_mark(name))
    if folder.exists():
        folder.rename(stale)
    fresh.rename(folder)
    shutil.rmtree(stale, ignore_errors=True)


def _write_digits(folder: Path, progress: Report) -> None:
    from online_aug.dataloader.digits import digits_arrays

    splits = {split: digits_arrays(split) for split in ("train", "val", "test")}
    total, done = sum(len(labels) for _, labels in splits.values()), 0
    for split, (images, labels) in splits.items():
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            place = folder / split / str(label)
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[..., 0]).save(place / f"{number:04d}.png")  # grey: r = g = b
            done += 1
            progress(done, total)


def _write_pocket_birds(folder: Path, progress: Report) -> None:
    from online_aug.dataloader.pocket_birds import write_dataset

    write_dataset(folder, progress)


_WRITERS: dict[str, Callable[[Path, Report], None]] = {
    "digits": _write_digits,
    "pocket_birds": _write_pocket_birds,
}


def _mark(name: str) -> str:
    return f"{name} {FORMATS[name]}\n"


def _marked(folder: Path) -> str | None:
    marker = folder / MARKER
    return marker.read_text() if marker.is_file() else None


@contextmanager
def _lock(root: Path, name: str) -> Iterator[None]:
    root.mkdir(parents=True, exist_ok=True)
    with (root / f".{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # released by the kernel however this process ends
        yield
