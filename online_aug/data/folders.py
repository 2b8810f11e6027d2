"""Image folders: read into splits, checked for fitting classes, and written once if generated."""

import os
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from online_aug.console import Report, terminal_progress
from online_aug.data.image_sets import FolderSet
from online_aug.data.images import HEIF_PACKAGE, HEIF_SUFFIXES, IMAGE_SUFFIXES
from online_aug.errors import UserError, escaped
from online_aug.file_digests.names import Names
from online_aug.files import alone

SPLIT_FOLDERS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev", "eval", "evaluation"),
    "test": ("test", "testing"),
}
"""Names of the folders of each split, in lower case; on disk any case counts."""
SYSTEM_FOLDERS = frozenset(
    {
        "@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot",
        "__macosx", "$recycle.bin", "system volume information", "lost+found",
    }
)  # fmt: skip
"""Folders that storage boxes and systems add of themselves, in lower case; some hold thumbnails."""
_SUFFIXES = tuple(IMAGE_SUFFIXES)
_SHOWN_KINDS = 5


def folder_splits(root: Path) -> dict[str, FolderSet]:
    """Read the splits under `root`: always `train`, and `val` and `test` if they have folders.

    Class folders are taken in sorted order and searched to any depth. Hidden files, files that are
    not images, and `SYSTEM_FOLDERS` are ignored; links are followed. A folder named like a split is
    one if it holds class folders; else it counts as a class, so that a set of vehicles may have a
    class `train`.

    Raises:
        UserError: If the folder or its classes cannot be used.
    """
    if not root.is_dir():
        raise UserError(f"data.source must be a folder that exists, got {root}")
    places = _split_places(root)
    if places:
        return read_splits(places)
    names = _class_names(root)
    if all(split_named(name) for name in names):
        raise UserError(
            f"{root} must hold a folder for each class, or splits with class folders in them, got "
            f"{', '.join(names)} without class folders"
        )
    return {"train": _read_split(root, names)}


def doubtful_folders(root: Path) -> tuple[str, ...]:
    """Say in lines what was made of folders that might have been meant otherwise."""
    places, names = _split_places(root), _sub_folders(root)
    if not places:
        like_splits = [name for name in names if split_named(name)]
        return tuple(
            f"{root / name} counts as a class: it is named like a split but holds no class folders"
            for name in like_splits
        )
    used = {place.name for place in places.values()}
    return tuple(
        f"{root / name} is not read: beside {', '.join(sorted(used))} it is no split"
        for name in names
        if name not in used
    )


def read_splits(places: Mapping[str, Path]) -> dict[str, FolderSet]:
    """Read each split from its folder of class folders; the classes are those of `train`.

    Raises:
        UserError: If a folder holds no class folders, a class that `train` lacks, or no images.
    """
    train = _class_names(places["train"])
    known, found = set(train), {}
    for split, place in places.items():
        unknown = [name for name in _class_names(place) if name not in known]
        refuse_unknown_classes(unknown, split, place)
        found[split] = _read_split(place, train)
    return found


def _split_places(root: Path) -> dict[str, Path]:
    """Return the folders of the splits; none if `root` holds the classes themselves."""
    named = {name: split for name in _sub_folders(root) if (split := split_named(name))}
    if not any(_sub_folders(root / name) for name in named):
        return {}
    found: dict[str, Path] = {}
    for name, split in named.items():
        if split in found:
            raise UserError(
                f"{root} must hold one folder for the {split} split, got {found[split].name} "
                f"and {name}"
            )
        found[split] = root / name
    if "train" not in found:
        raise UserError(
            f"{root} must hold a folder train with class folders beside "
            f"{', '.join(place.name for place in found.values())}, got none"
        )
    return {split: found[split] for split in SPLIT_FOLDERS if split in found}


def split_named(name: str) -> str | None:
    """Return the split that a folder of this name would be, or None."""
    return next((s for s, names in SPLIT_FOLDERS.items() if name.casefold() in names), None)


def _class_names(folder: Path) -> tuple[str, ...]:
    names = _sub_folders(folder)
    if not names:
        raise UserError(
            f"{folder} must hold a folder for each class, or train/, val/ and test/ with them, "
            "got neither"
        )
    return names


def _read_split(folder: Path, class_names: tuple[str, ...]) -> FolderSet:
    passed_over: Counter[str] = Counter()
    found = {
        name: Names.of([f"{name}/{one}" for one in sorted(_images(folder / name, passed_over))])
        for name in class_names
        if (folder / name).is_dir()
    }
    if not any(map(len, found.values())):
        raise UserError(f"data.source must hold images, no images were found in {folder}")
    for name, members in found.items():
        if not members:
            kinds = said_of_kinds(passed_over)
            raise UserError(
                f"every class must have images, class {name!r} in {folder} has none"
                + (f"; {kinds}" if kinds else "")
            )
    sizes = [len(found.get(name, ())) for name in class_names]
    return FolderSet(
        root=folder,
        files=Names(b"".join(members.content for members in found.values())),
        class_names=_names_to_show(class_names),
        labels=np.repeat(np.arange(len(class_names)), sizes),
        passed_over=passed_over,
    )


def _names_to_show(folders: Sequence[str]) -> tuple[str, ...]:
    """Return names of classes that any terminal, file and prompt can hold."""
    names = tuple(map(escaped, folders))
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"two class folders must not both be shown as {twice}: rename one of them")
    return names


def said_of_kinds(passed_over: Mapping[str, int]) -> str:
    """Say in half a sentence how many files of which kinds are not read; nothing if none."""
    if not passed_over:
        return ""
    most = sorted(passed_over.items(), key=lambda kind: (-kind[1], kind[0]))
    shown = ", ".join(f"{count} {suffix}" for suffix, count in most[:_SHOWN_KINDS])
    more = f" and {len(most) - _SHOWN_KINDS} more kinds" if len(most) > _SHOWN_KINDS else ""
    is_heif = any(suffix in HEIF_SUFFIXES for suffix in passed_over)
    way_out = f" (pip install {HEIF_PACKAGE} reads HEIF)" if is_heif else ""
    return f"left out as no images that are read here: {shown}{more}{way_out}"


def _sub_folders(folder: Path) -> tuple[str, ...]:
    if not folder.is_dir():
        return ()
    return tuple(
        sorted(p.name for p in folder.iterdir() if p.is_dir() and not _is_passed_over(p.name))
    )


def _is_passed_over(folder_name: str) -> bool:
    return folder_name.startswith(".") or folder_name.casefold() in SYSTEM_FOLDERS


def image_files(folder: Path) -> list[str]:
    """Return the images in a folder and those below it, relative to it, in sorted order."""
    return sorted(_images(folder, Counter()))


def has_images(folder: Path) -> bool:
    """Return whether there is an image in a folder or below it."""
    return bool(_images(folder, Counter()))


def _images(folder: Path, passed_over: Counter[str]) -> list[str]:
    """List the images in a folder and those below it; links are followed, but not back up."""
    found, above, seen = list[str](), [""], set()
    while above:
        prefix = above.pop()
        place = f"{folder}/{prefix}"
        status = os.stat(place)  # noqa: PTH116 - faster, for many folders
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        names, folders = _listed(place)
        above += [f"{prefix}{name}/" for name in folders if not _is_passed_over(name)]
        images = [name for name in names if name.lower().endswith(_SUFFIXES) and name[0] != "."]
        found += [prefix + name for name in images] if prefix else images
        if len(images) < len(names):
            others = set(names).difference(images)
            passed_over.update(map(_kind, (name for name in others if name[0] != ".")))
    return found


def _listed(place: str) -> tuple[list[str], list[str]]:
    """List the files and the folders in a folder; one that cannot be read seems to be empty."""
    names, folders = list[str](), list[str]()
    try:
        with os.scandir(place) as entries:
            for entry in entries:
                (folders if entry.is_dir() else names).append(entry.name)
    except OSError:
        pass
    return names, folders


def _kind(name: str) -> str:
    return escaped(Path(name).suffix.lower()) or "without suffix"


def refuse_unknown_classes(unknown: Sequence[str], split: str, place: object) -> None:
    """Raise a `UserError` if a split has classes that the training split lacks."""
    if unknown:
        names = ", ".join(map(repr, unknown[:5])) + (", ..." if len(unknown) > 5 else "")
        raise UserError(
            f"every class of the {split} split must be in train, {names} "
            f"of {place} {'is' if len(unknown) == 1 else 'are'} not"
        )


def refuse_out_of_range(label: object, known: Collection[Any], place: object) -> None:
    """Raise a `UserError` if a label is not one of the numbers of `known` classes."""
    if label not in known:
        raise UserError(
            f"labels of {place} must be whole numbers from {min(known)} to {max(known)}, "
            f"one for each of its {len(known)} classes, got {label!r}"
        )


def no_single_class(label: object, source: str) -> UserError:
    """Return the error for a label that is missing, a list or a fraction."""
    return UserError(
        f"data.source must have one class an image, got {source} with a label {label!r}"
    )


MARKER = ".online_aug_data"
"""File that says what a written folder holds; a folder without it is never replaced."""


def written_once(folder: Path, mark: str, write: Callable[[Path, Report], None]) -> Path:
    """Fill `folder` by `write` unless it already bears this `mark`, and return it.

    It is written under another name and renamed when complete, so an interrupt leaves nothing half
    done. If several processes ask at once, one writes and the others wait for it.

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
    for left_behind in (fresh, stale):  # by a process that was killed; we hold the lock
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
