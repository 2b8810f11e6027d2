"""What data sets publish beside their images: lists of files, tables, MATLAB arrays."""

from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from online_aug.dataloader.image_sets import FolderSet, Groups


def table(path: Path, columns: int) -> list[list[str]]:
    """The lines of a text file, divided at white space; the last column keeps its own.

    Raises:
        ValueError: If a line has fewer columns.
    """
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        row = line.split(maxsplit=columns - 1)
        if row and len(row) < columns:
            raise ValueError(f"{path} must have {columns} columns, got {line!r} in line {number}")
        if row:
            rows.append([*row[:-1], row[-1].strip()])
    return rows


def matlab(path: Path) -> dict[str, Any]:
    """The arrays of a MATLAB file (before 7.3) by name; only data, nothing in it is run."""
    from scipy.io import loadmat

    arrays: dict[str, Any] = loadmat(path, squeeze_me=True)
    return arrays


def listed(
    root: Path,
    pairs: Iterable[tuple[str, int]],
    class_names: Sequence[str],
    groups: Groups | None = None,
) -> FolderSet:
    """The images of a list.

    Args:
        root: Folder that the names are relative to.
        pairs: Name of each file, with `/`, and its class, counted from 0.
        class_names: Names by class.
        groups: Those of the same images, in the same order.

    Raises:
        ValueError: If there is no image, a class has no name, or a file lies outside of `root`.
    """
    files, labels = [], []
    for file, label in pairs:
        if not 0 <= label < len(class_names):
            raise ValueError(
                f"class of {file} must be one of {len(class_names)}, counted from 0, got {label}"
            )
        if PurePosixPath(file).is_absolute() or ".." in PurePosixPath(file).parts:
            raise ValueError(f"files must lie in {root}, got {file}")
        files.append(file)
        labels.append(label)
    if not files:
        raise ValueError(f"list of images in {root} must not be empty")
    return FolderSet(
        root=root,
        files=tuple(files),
        class_names=tuple(class_names),
        labels=np.asarray(labels, np.int64),
        groups=groups,
    )
