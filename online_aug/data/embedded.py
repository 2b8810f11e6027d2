"""Embedded data sets, `digits` and `pocket_birds`, written as image folders on first use.

Digits are scikit-learn's 1,797 handwritten digits; pocket birds are drawn by `pocket_birds.py`.
"""

import csv
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from online_aug.console import Report
from online_aug.data.folders import folder_splits, written_once
from online_aug.data.image_sets import FolderSet, Groups

EMBEDDED_SETS = ("digits", "pocket_birds")
FORMATS = {"digits": 1, "pocket_birds": 2}
"""Version of what is written; a folder of another version is replaced."""

_SIZE_PX = 64
_TEST_SHARE, _VAL_SHARE = 0.25, 0.15
_SPLIT_SEED = 0
"""The split of the digits never changes, so that results stay comparable."""


def embedded_splits(name: str, root: Path) -> dict[str, FolderSet]:
    """Read the splits of an embedded set; those of pocket birds have groups of family and habitat.

    Raises:
        UserError: As `write_embedded`.
    """
    folder = write_embedded(name, root)
    splits = folder_splits(folder)
    if name != "pocket_birds":
        return splits
    places = _family_and_habitat(folder)
    names = tuple(sorted(set(places.values())))
    return {
        split: replace(images, groups=_groups(names, [places[split, f] for f in images.files]))
        for split, images in splits.items()
    }


def _family_and_habitat(folder: Path) -> dict[tuple[str, str], str]:
    with (folder / "metadata.csv").open(newline="") as file:
        rows = [(row["path"].partition("/"), row) for row in csv.DictReader(file)]
    return {(split, file): f"{row['family']} in {row['habitat']}" for (split, _, file), row in rows}


def _groups(names: tuple[str, ...], found: list[str]) -> Groups:
    return Groups(names, np.array([names.index(name) for name in found]))


def write_embedded(name: str, root: Path) -> Path:
    """Return the folder `root/name`, written first if it is not there.

    Raises:
        UserError: If the folder cannot be written or holds something else.
    """
    return written_once(root / name, f"{name} {FORMATS[name]}\n", _WRITERS[name])


def digits_arrays(split: str) -> tuple[UInt8[np.ndarray, "n 64 64 3"], Int[np.ndarray, " n"]]:
    """Return the images of one split of the digits and their labels.

    The images are white strokes on black, enlarged from 8 x 8 px by bicubic interpolation.

    Args:
        split: `train` (60 %), `val` (15 %) or `test` (25 %), stratified by digit.
    """
    from sklearn.datasets import load_digits  # slow to import, needed once

    digits, labels = load_digits(return_X_y=True)
    chosen = _split_indices()[split]
    images = np.stack([_enlarged(digits[i].reshape(8, 8)) for i in chosen])
    return images, labels[chosen].astype(np.int64)


@cache
def _split_indices() -> dict[str, np.ndarray]:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    labels = load_digits().target
    rest, test = train_test_split(
        np.arange(len(labels)), test_size=_TEST_SHARE, stratify=labels, random_state=_SPLIT_SEED
    )
    train, val = train_test_split(
        rest,
        test_size=_VAL_SHARE / (1 - _TEST_SHARE),
        stratify=labels[rest],
        random_state=_SPLIT_SEED,
    )
    return {"train": np.sort(train), "val": np.sort(val), "test": np.sort(test)}


def _enlarged(digit: np.ndarray) -> UInt8[np.ndarray, "64 64 3"]:
    small = Image.fromarray(np.clip(digit * 255 / 16, 0, 255).astype(np.uint8))
    grey = np.asarray(small.resize((_SIZE_PX, _SIZE_PX), Image.Resampling.BICUBIC))
    return np.repeat(grey[..., None], 3, axis=2)


def _write_digits(folder: Path, progress: Report) -> None:
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
    from online_aug.data.pocket_birds import write_dataset

    write_dataset(folder, progress)


_WRITERS: dict[str, Callable[[Path, Report], None]] = {
    "digits": _write_digits,
    "pocket_birds": _write_pocket_birds,
}
