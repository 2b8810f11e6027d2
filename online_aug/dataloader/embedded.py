"""Embedded data sets, written as ordinary image folders when they are first asked for."""

from collections.abc import Callable
from pathlib import Path

from PIL import Image

from online_aug.dataloader.progress import Report
from online_aug.dataloader.written import written_once

EMBEDDED_SETS = ("digits", "pocket_birds")
FORMATS = {"digits": 1, "pocket_birds": 2}
"""Raised when what is written changes: a folder of another format is written anew."""


def write_embedded(name: str, root: Path) -> Path:
    """The folder `root/name`, written unless it is already there.

    Raises:
        UserError: If the folder cannot be written, or holds something else.
    """
    return written_once(root / name, f"{name} {FORMATS[name]}\n", _WRITERS[name])


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
