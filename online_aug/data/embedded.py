"""Digits: scikit-learn's 1,797 real handwritten digits as a small image data set.

Embedded data sets, written as ordinary image folders when they are first asked for.
"""

from functools import cache
import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from collections.abc import Callable
from pathlib import Path
from online_aug.console import Report
from online_aug.data.folders import written_once

SIZE_PX = 64
TEST_SHARE, VAL_SHARE = 0.25, 0.15
SPLIT_SEED = 0
"""The split never changes: results of different runs and versions stay comparable."""


def digits_arrays(
    split: str,
) -> tuple[UInt8[np.ndarray, "n 64 64 3"], Int[np.ndarray, " n"]]:
    """Pictures (white strokes on black, bicubic from 8 x 8 px) and labels of one split.

    Args:
        split: `train` (60 %), `val` (15 %) or `test` (25 %), each with every digit in proportion.
    """
    digits, labels = load_digits(return_X_y=True)
    chosen = _indices()[split]
    images = np.stack([_enlarged(digits[i].reshape(8, 8)) for i in chosen])
    return images, labels[chosen].astype(np.int64)


@cache
def _indices() -> dict[str, np.ndarray]:
    labels = load_digits().target
    rest, test = train_test_split(
        np.arange(len(labels)), test_size=TEST_SHARE, stratify=labels, random_state=SPLIT_SEED
    )
    train, val = train_test_split(
        rest,
        test_size=VAL_SHARE / (1 - TEST_SHARE),
        stratify=labels[rest],
        random_state=SPLIT_SEED,
    )
    return {"train": np.sort(train), "val": np.sort(val), "test": np.sort(test)}


def _enlarged(digit: np.ndarray) -> UInt8[np.ndarray, "64 64 3"]:
    small = Image.fromarray(np.clip(digit * 255 / 16, 0, 255).astype(np.uint8))
    grey = np.asarray(small.resize((SIZE_PX, SIZE_PX), Image.Resampling.BICUBIC))
    return np.repeat(grey[..., None], 3, axis=2)


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
    pass

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
