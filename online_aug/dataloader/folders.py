"""Image folders: `train/ val/ test/` with class folders, or one folder of class folders."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from online_aug.dataloader.class_checks import refuse_unknown_classes
from online_aug.dataloader.image_sets import FolderSet
from online_aug.dataloader.images import IMAGE_SUFFIXES
from online_aug.errors import UserError

SPLIT_FOLDERS = {
    "train": ("train",),
    "val": ("val", "valid", "validation"),
    "test": ("test",),
}
_SUFFIXES = tuple(IMAGE_SUFFIXES)


def folder_splits(root: Path) -> dict[str, FolderSet]:
    """The splits found under `root`: always `train`, and `val` and `test` where there are folders.

    Class folders are taken in sorted order and searched to any depth; hidden files and files that
    are no images are ignored, links are followed. A `train` folder without sub-folders counts as a
    class, so that a set of vehicles is not mistaken for a split.

    Raises:
        UserError: If the folder or the classes in it cannot be used as they are.
    """
    if not root.is_dir():
        raise UserError(f"data.source must be a folder that exists, got {root}")
    if not _sub_folders(root / "train"):
        return {"train": _read_split(root, _class_names(root))}
    places = {split: _split_folder(root, names) for split, names in SPLIT_FOLDERS.items()}
    return read_splits({split: place for split, place in places.items() if place is not None})


def read_splits(places: Mapping[str, Path]) -> dict[str, FolderSet]:
    """The set of each split from its folder of class folders; the classes are those of `train`.

    Raises:
        UserError: If a folder holds no class folders, a class that `train` lacks, or no images.
    """
    train = _class_names(places["train"])
    found = {}
    for split, place in places.items():
        unknown = [name for name in _class_names(place) if name not in train]
        refuse_unknown_classes(unknown, split, place)
        found[split] = _read_split(place, train)
    return found


def _split_folder(root: Path, names: tuple[str, ...]) -> Path | None:
    there = [root / name for name in names if (root / name).is_dir()]
    if len(there) > 1:
        got = " and ".join(path.name for path in there)
        raise UserError(f"{root} must hold one folder for the {names[0]} split, got {got}")
    return there[0] if there else None


def _class_names(folder: Path) -> tuple[str, ...]:
    names = _sub_folders(folder)
    if not names:
        raise UserError(
            f"{folder} must hold a folder for each class, or train/, val/ and test/ with them, "
            "got neither"
        )
    return names


def _read_split(folder: Path, class_names: tuple[str, ...]) -> FolderSet:
    found = {
        name: sorted(_images(folder / name)) for name in class_names if (folder / name).is_dir()
    }
    if not any(found.values()):
        raise UserError(f"data.source must hold images, no images were found in {folder}")
    number = {name: k for k, name in enumerate(class_names)}
    files, labels = [], []
    for name, members in found.items():
        if not members:
            raise UserError(f"every class must have images, class {name!r} in {folder} has none")
        files += [f"{name}/{member}" for member in members]
        labels += [number[name]] * len(members)
    return FolderSet(
        root=folder,
        files=tuple(files),
        class_names=class_names,
        labels=np.asarray(labels, np.int64),
    )


def _sub_folders(folder: Path) -> tuple[str, ...]:
    if not folder.is_dir():
        return ()
    return tuple(
        sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    )


def _images(folder: Path) -> Iterator[str]:
    seen = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = Path(place).resolve()
        if real in seen:  # a link that leads back up
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        prefix = Path(place).relative_to(folder).as_posix()
        for name in files:
            if name.lower().endswith(_SUFFIXES) and not name.startswith("."):
                yield name if prefix == "." else f"{prefix}/{name}"
