"""The synthetic folder of Diff-Mix's scripts: `data/SOURCE/TARGET-000000-0.7.png` and `meta.csv`.

Its `meta.csv` has the columns First Directory, Second Directory, Number, Strength and Path; in it
class names have spaces where folders have underscores. Ours has the records' own columns too,
which the scripts do not look at.

The output of DiffuseMix's script: `generated/CLASS/FILE_generated_PROMPT_0.jpg`.

Only `generated/` is taken. The script's other folders hold what is mixed from it with the original
and a fractal, which is done anew at every use here.

An image folder: a folder a class, and `metadata.csv` with what made each image.

Hugging Face's `imagefolder` loader reads the table, torchvision's ImageFolder the folders.

What the readers of foreign folders share: where they look, and how they name what has no key.
"""

import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias

from cache.errors import CacheError
from cache.exchange.image_files import (
    Description,
    as_file,
    as_png,
    from_file,
    read_inside,
    walk_images,
)
from cache.exchange.merging import LeftOutError
from cache.exchange.rows import (
    COLUMNS,
    ClassNames,
    TableWriter,
    from_row,
    heads,
    label_of,
    read_class_names,
    read_table,
    to_row,
)
from cache.keys import Scalar, content_digest
from cache.record import Record

Found: TypeAlias = tuple[str, Callable[[], Record]]
"""The name of an image for messages, and what reads it; raises CacheError if it cannot be."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A folder to import from."""

    root: Path
    classes: ClassNames | None = None
    """Classes in the order of their labels; None takes the folders' names in order."""
    method: str | None = None
    """Method to name in requests that do not have one."""

    def class_names(self, folder: Path) -> ClassNames:
        """The classes of images that lie in class folders under `folder`.

        Raises:
            CacheError: If there are no classes.
        """
        if self.classes is not None:
            return self.classes
        try:
            return read_class_names(folder)
        except CacheError as error:
            raise CacheError(f"source must hold class folders, got none in {folder}") from error


def refuse(reason: str) -> Record:
    """No image, for that reason.

    Raises:
        CacheError: Always.
    """
    raise CacheError(reason)


def foreign(method: str, content: bytes, fields: Mapping[str, Scalar]) -> Description:
    """Describe an image that another program made: what is known of it and its file's digest.

    The digest stands for all that is not known, so that the same file is always the same record
    and no image of ours can have its key.
    """
    request = {
        "method": method,
        "origin": "import",
        "image_digest": content_digest(content),
        **fields,
    }
    return Description(request=request, created=time.time())


_DIFF_MIX_TABLE, _DIFF_MIX_DATA = "meta.csv", "data"
_DIFF_MIX_PATH = re.compile(
    r"(?P<source>[^/]+)/(?P<target>.+)-(?P<number>\d{1,18})-(?P<strength>[^/]+)\.png"
)


class DiffMixWriter:
    """Writes the folder, its images as PNG of the records' pixels."""

    def __init__(self, folder: Path, classes: ClassNames) -> None:
        """Start in an empty folder."""
        self._data, self._classes = folder / _DIFF_MIX_DATA, classes
        self._data.mkdir()
        self._made: set[str] = set()
        self._number = 0
        heads = ("First Directory", "Second Directory", "Number", "Strength", "Path")
        self._table = TableWriter(folder / _DIFF_MIX_TABLE, (*heads, *COLUMNS))

    def add(self, stored: Record) -> None:
        """Write one record.

        Raises:
            LeftOutError: If it names no two classes or no strength.
            CacheError: If a class has no name.
        """
        source, target, strength = self._parts(stored)
        content = as_png(stored)
        if source not in self._made:
            (self._data / source).mkdir()
            self._made.add(source)
        path = f"{source}/{target}-{self._number:06d}-{strength}.png"
        (self._data / path).write_bytes(content)
        row = {
            "First Directory": source.replace("_", " "),
            "Second Directory": target.replace("_", " "),
            "Number": self._number,
            "Strength": strength,
            "Path": path,
        }
        self._table.add(row | to_row(stored))
        self._number += 1

    def close(self) -> None:
        """Finish the table."""
        self._table.close()

    def _parts(self, stored: Record) -> tuple[str, str, float]:
        source, target = (label_of(stored.request, side) for side in ("source", "target"))
        strength = stored.request.get("strength")
        if source is None or target is None or not isinstance(strength, float):
            raise LeftOutError("request must name source_label, target_label and strength")
        folders = (self._classes.folder(label).replace(" ", "_") for label in (source, target))
        return (*folders, strength)  # type: ignore[return-value]


def read_diff_mix(source: Source) -> Iterator[Found]:
    """The images of the folder: those of `meta.csv`, or without one all whose names fit.

    Requests of our own are read back; those of the scripts are pieced together from the names.
    """
    columns = heads(source.root / _DIFF_MIX_TABLE)
    if {"Path", "key", "request"} <= columns:
        for row in read_table(source.root / _DIFF_MIX_TABLE):
            yield row.get("Path", ""), partial(_load_diff_mix, source.root / _DIFF_MIX_DATA, row)
        return
    classes = source.class_names(source.root / _DIFF_MIX_DATA)
    for name in _listed(source.root) if columns else walk_images(source.root / _DIFF_MIX_DATA):
        yield name, partial(_load_foreign, source, classes, name)


def is_diff_mix(root: Path) -> bool:
    """Whether a folder looks like the scripts' output."""
    if not (root / _DIFF_MIX_DATA).is_dir():
        return False
    names = walk_images(root / _DIFF_MIX_DATA)
    return "First Directory" in heads(root / _DIFF_MIX_TABLE) or bool(
        _DIFF_MIX_PATH.fullmatch(next(names, ""))
    )


def _listed(root: Path) -> Iterator[str]:
    for row in read_table(root / _DIFF_MIX_TABLE):
        yield row.get("Path", "").replace("\\", "/")


def _load_diff_mix(data: Path, row: Mapping[str, str]) -> Record:
    return from_file(read_inside(data, row.get("Path", "")), from_row(row))


def _load_foreign(source: Source, classes: ClassNames, name: str) -> Record:
    content = read_inside(source.root / _DIFF_MIX_DATA, name)
    fields = _fields(name, classes)
    return from_file(content, foreign(source.method or "diff_mix", content, fields))


def _fields(name: str, classes: ClassNames) -> dict[str, Scalar]:
    match = _DIFF_MIX_PATH.fullmatch(name)
    if match is None:
        raise CacheError("name must be SOURCE/TARGET-NUMBER-STRENGTH.png")
    try:
        strength = float(match["strength"])
    except ValueError as error:
        raise CacheError("strength in the name must be a number") from error
    if not 0 < strength <= 1:
        raise CacheError(f"strength in the name must be in (0, 1], got {strength}")
    return {
        "source_class": match["source"].replace("_", " "),
        "source_label": classes.label(match["source"]),
        "target_class": match["target"].replace("_", " "),
        "target_label": classes.label(match["target"]),
        "strength": strength,
        "variant": int(match["number"]),
    }


_DIFFUSEMIX_DATA = "generated"
_DIFFUSEMIX_PATH = re.compile(
    r"(?P<folder>[^/]+)/(?P<file>.+)_generated_(?P<prompt>.*)_(?P<number>\d{1,18})\.\w+"
)


def read_diffusemix(source: Source) -> Iterator[Found]:
    """The generated images; their classes are the folders, which are source and target at once."""
    data = source.root / _DIFFUSEMIX_DATA
    classes = source.class_names(data)
    for name in walk_images(data):
        yield name, partial(_load, source, classes, name)


def is_diffusemix(root: Path) -> bool:
    """Whether a folder looks like the script's output."""
    return (root / _DIFFUSEMIX_DATA).is_dir()


def _load(source: Source, classes: ClassNames, name: str) -> Record:
    match = _DIFFUSEMIX_PATH.fullmatch(name)
    if match is None:
        raise CacheError("name must be CLASS/FILE_generated_PROMPT_NUMBER.jpg")
    content = read_inside(source.root / _DIFFUSEMIX_DATA, name)
    label = classes.label(match["folder"])
    fields = {
        "source_class": match["folder"],
        "source_label": label,
        "source_file": match["file"],
        "target_class": match["folder"],
        "target_label": label,
        "prompt": match["prompt"],
        "variant": int(match["number"]),
    }
    return from_file(content, foreign(source.method or "diffusemix", content, fields))


TABLE = "metadata.csv"
_UNLABELLED = "unlabelled"


class FolderWriter:
    """Writes `CLASS/KEY.png` (or `.jpg`, `.webp`) and the table; the class is the target's."""

    def __init__(self, folder: Path, classes: ClassNames) -> None:
        """Start in an empty folder."""
        self._folder, self._classes = folder, classes
        self._made: set[str] = set()
        self._table = TableWriter(folder / TABLE, ("file_name", *COLUMNS))

    def add(self, stored: Record) -> None:
        """Write one record.

        Raises:
            CacheError: If its class has no name.
        """
        name = self._class_folder(stored)
        suffix, content = as_file(stored)
        if name not in self._made:
            (self._folder / name).mkdir()
            self._made.add(name)
        file_name = f"{name}/{stored.key.hex()}{suffix}"
        (self._folder / file_name).write_bytes(content)
        self._table.add({"file_name": file_name, **to_row(stored)})

    def close(self) -> None:
        """Finish the table."""
        self._table.close()

    def _class_folder(self, stored: Record) -> str:
        label = label_of(stored.request, "target")
        label = label_of(stored.request, "source") if label is None else label
        return _UNLABELLED if label is None else self._classes.folder(label)


def read_export(source: Source) -> Iterator[Found]:
    """The images of a folder that was exported, under the requests they had."""
    for row in read_table(source.root / TABLE):
        name = row.get("file_name", "")
        yield name, partial(_load_exported, source.root, name, row)


def read_classes(source: Source) -> Iterator[Found]:
    """The images of class folders that anyone made; the first folder is the class."""
    classes = source.class_names(source.root)
    for name in walk_images(source.root):
        yield name, partial(_load_classified, source, classes, name)


def is_export(root: Path) -> bool:
    """Whether the folder's table has what records are made of."""
    return {"file_name", "key", "request"} <= heads(root / TABLE)


def _load_exported(root: Path, name: str, row: dict[str, str]) -> Record:
    return from_file(read_inside(root, name), from_row(row))


def _load_classified(source: Source, classes: ClassNames, name: str) -> Record:
    folder, _, rest = name.partition("/")
    if not rest:
        raise CacheError("image must lie in the folder of its class")
    content = read_inside(source.root, name)
    label = classes.label(folder)
    fields: dict[str, Scalar] = {
        "source_class": folder,
        "source_label": label,
        "target_class": folder,
        "target_label": label,
    }
    return from_file(content, foreign(source.method or "image_folder", content, fields))
