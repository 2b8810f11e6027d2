"""Folders of other programs: Diff-Mix's and DiffuseMix's output, plain class folders."""

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from cache.errors import CacheError
from cache.exchange.image_files import (
    Description,
    as_png,
    bounded_lines,
    from_file,
    open_regular,
    read_inside,
    walk_images,
)
from cache.exchange.metadata import (
    COLUMNS,
    ClassNames,
    TableWriter,
    column_names,
    from_row,
    read_class_names,
    read_table,
    to_row,
)
from cache.keys import Scalar, content_digest
from cache.record import Record

FoundImage: TypeAlias = tuple[str, Callable[[], Record]]
"""Name of an image for messages, and a function that reads it or raises `CacheError`."""

_DIFF_MIX_TABLE, _DIFF_MIX_DATA = "meta.csv", "data"
_DIFF_MIX_COLUMNS = ("First Directory", "Second Directory", "Number", "Strength", "Path")
_DIFF_MIX_PATH = re.compile(
    r"(?P<source>[^/]+)/(?P<target>.+)-(?P<number>\d{1,18})-(?P<strength>[^/]+)\.png"
)

_DIFFUSEMIX_DATA = "generated"
"""The script's other folders hold these images mixed with originals, which we do when training."""
_DIFFUSEMIX_PATH = re.compile(
    r"(?P<folder>[^/]+)/(?P<file>.+)_generated_(?P<prompt>.*)_(?P<number>\d{1,18})\.\w+"
)


_DA_FUSION_PATH = re.compile(
    r"(?P<name>[^/]+)-(?P<index>\d{1,18})-(?P<number>\d{1,18})\.png", re.DOTALL
)
_ANY_CLASS = "aug"
"""Name of all images of DA-Fusion's training script; its other one names them by their class."""


class LeftOutError(CacheError):
    """A format has no place for this record; other records can still be exported."""


@dataclass(frozen=True, kw_only=True)
class ImportFolder:
    """A folder to import images from."""

    root: Path
    classes: ClassNames | None = None
    """Classes in the order of their labels; None takes the folders' names in sorted order."""
    method: str | None = None
    """Method for images without a request; None takes the format's own."""
    order: Path | None = None
    """Text file with the training images, `CLASS/FILE` a line, that DA-Fusion's numbers count."""
    url: str | None = None
    """Where `root` is a copy from, for messages."""

    @property
    def name(self) -> str:
        """The name by which the user gave the folder."""
        return self.url or str(self.root)

    def class_names(self, folder: Path) -> ClassNames:
        """Return the classes of the images in the class folders under `folder`.

        Raises:
            CacheError: If there are no classes.
        """
        if self.classes is not None:
            return self.classes
        try:
            return read_class_names(folder)
        except CacheError as error:
            raise CacheError(f"source must hold class folders, got none in {self.name}") from error


def describe_foreign(method: str, content: bytes, fields: Mapping[str, Scalar]) -> Description:
    """Describe an image of another program by what is known of it and its file's digest.

    The digest stands for everything unknown: the same file is always the same record, and no
    image of ours can have its key.
    """
    request = {
        "method": method,
        "origin": "import",
        "image_digest": content_digest(content),
        **fields,
    }
    return Description(request=request, created=time.time())


def refuse(reason: str) -> Record:
    """Stand in for the reader of a broken image.

    Raises:
        CacheError: Always, with `reason`.
    """
    raise CacheError(reason)


def load_described(root: Path, name: str, row: Mapping[str, Any]) -> Record:
    """Read the image `name` in `root` with the request, scores and names of a row of ours.

    Raises:
        CacheError: If image or row are broken.
    """
    return from_file(read_inside(root, name), from_row(row))


class DiffMixWriter:
    """Writes `data/SOURCE/TARGET-000000-0.7.png` and `meta.csv`, as Diff-Mix's scripts do.

    The table has our columns too, which those scripts do not look at. In it class names have
    spaces where folders have underscores.
    """

    def __init__(self, folder: Path, classes: ClassNames) -> None:
        """Start in an empty folder."""
        self._data, self._classes = folder / _DIFF_MIX_DATA, classes
        self._data.mkdir()
        self._made: set[str] = set()
        self._number = 0
        self._table = TableWriter(folder / _DIFF_MIX_TABLE, (*_DIFF_MIX_COLUMNS, *COLUMNS))

    def add(self, record: Record) -> None:
        """Write one record.

        Raises:
            LeftOutError: If it lacks one of its two classes or the strength.
            CacheError: If a class has no name.
        """
        source, target, strength = self._name_parts(record)
        content = as_png(record)
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
        self._table.add(row | to_row(record, self._classes))
        self._number += 1

    def close(self) -> None:
        """Finish the table."""
        self._table.close()

    def _name_parts(self, record: Record) -> tuple[str, str, float]:
        source, target = (self._classes.folder_in(record, side) for side in ("source", "target"))
        strength = record.request.get("strength")
        if source is None or target is None or not isinstance(strength, float):
            raise LeftOutError("request must name source class, target class and strength")
        return source.replace(" ", "_"), target.replace(" ", "_"), strength


def is_diff_mix(root: Path) -> bool:
    """Return whether a folder looks like the output of Diff-Mix's scripts."""
    if not (root / _DIFF_MIX_DATA).is_dir():
        return False
    names = walk_images(root / _DIFF_MIX_DATA)
    return "First Directory" in column_names(root / _DIFF_MIX_TABLE) or bool(
        _DIFF_MIX_PATH.fullmatch(next(names, ""))
    )


def read_diff_mix(source: ImportFolder) -> Iterator[FoundImage]:
    """Find the images that `meta.csv` lists or, if there is none, all whose names fit.

    Rows with a request of ours give it back; others get one from the file's name.
    """
    table, data = source.root / _DIFF_MIX_TABLE, source.root / _DIFF_MIX_DATA
    columns = column_names(table)
    if {"Path", "key", "request"} <= columns:
        for row in read_table(table):
            name = row.get("Path", "")
            yield name, partial(load_described, data, name, row)
        return
    classes = source.class_names(data)
    for name in _listed_paths(table) if columns else walk_images(data):
        yield name, partial(_load_diff_mix, source, classes, name)


def is_diffusemix(root: Path) -> bool:
    """Return whether a folder looks like the output of DiffuseMix's script."""
    return (root / _DIFFUSEMIX_DATA).is_dir()


def read_diffusemix(source: ImportFolder) -> Iterator[FoundImage]:
    """Find the images `generated/CLASS/FILE_generated_PROMPT_0.jpg` of DiffuseMix's script.

    The class folder is source and target class at once.
    """
    data = source.root / _DIFFUSEMIX_DATA
    classes = source.class_names(data)
    for name in walk_images(data):
        yield name, partial(_load_diffusemix, source, classes, name)


def is_da_fusion(root: Path) -> bool:
    """Return whether a folder looks like the images that DA-Fusion's scripts keep."""
    return root.is_dir() and bool(_DA_FUSION_PATH.fullmatch(next(walk_images(root), "")))


def read_da_fusion(source: ImportFolder) -> Iterator[FoundImage]:
    """Find `aug-INDEX-NUMBER.png` or `CLASS-INDEX-NUMBER.png`, of the training image at this index.

    The index counts from 0.

    Raises:
        CacheError: If the list of training images is missing or holds something else.
    """
    if source.order is None:
        raise CacheError(
            "--order must be a file that lists the training images for aug-INDEX-NUMBER.png, got "
            f"none for {source.name}: CLASS/FILE a line, in the order of their indices"
        )
    images = _listed_images(source.order)
    classes = source.classes or ClassNames(sorted({folder for folder, _ in images}))
    for name in walk_images(source.root):
        yield name, partial(_load_da_fusion, source, classes, images, name)


def _listed_images(path: Path) -> list[tuple[str, str]]:
    """Read class and file name of every training image; class folders may lie in others."""
    with open_regular(path) as file:
        parts = [line.strip().split("/") for line in bounded_lines(file) if line.strip()]
    if not parts or any(len(part) < 2 for part in parts):
        wrong = next(("/".join(part) for part in parts if len(part) < 2), "no line")
        raise CacheError(f"--order must hold CLASS/FILE a line, got {wrong[:80]!r} in {path}")
    return [(part[-2], part[-1]) for part in parts]


def _load_da_fusion(
    source: ImportFolder, classes: ClassNames, images: Sequence[tuple[str, str]], name: str
) -> Record:
    match = _DA_FUSION_PATH.fullmatch(name)
    if match is None:
        raise CacheError("name must be aug-INDEX-NUMBER.png or CLASS-INDEX-NUMBER.png")
    if int(match["index"]) >= len(images):
        raise CacheError(f"index in the name must be below the {len(images)} images of --order")
    folder, file = images[int(match["index"])]
    if match["name"] not in (_ANY_CLASS, folder.replace(" ", "_")):
        raise CacheError(
            f"class in the name must be that of the image at its index in --order, {folder}"
        )
    content = read_inside(source.root, name)
    fields = _one_class(folder, classes) | {"source_file": file, "variant": int(match["number"])}
    return from_file(content, describe_foreign(source.method or "da_fusion", content, fields))


def read_class_folders(source: ImportFolder) -> Iterator[FoundImage]:
    """Find the images of any folder; the first folder on an image's path is its class."""
    classes = source.class_names(source.root)
    for name in walk_images(source.root):
        yield name, partial(_load_classified, source, classes, name)


def _listed_paths(table: Path) -> Iterator[str]:
    for row in read_table(table):
        yield row.get("Path", "").replace("\\", "/")


def _load_diff_mix(source: ImportFolder, classes: ClassNames, name: str) -> Record:
    content = read_inside(source.root / _DIFF_MIX_DATA, name)
    fields = _diff_mix_fields(name, classes)
    return from_file(content, describe_foreign(source.method or "diff_mix", content, fields))


def _diff_mix_fields(name: str, classes: ClassNames) -> dict[str, Scalar]:
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


def _load_diffusemix(source: ImportFolder, classes: ClassNames, name: str) -> Record:
    match = _DIFFUSEMIX_PATH.fullmatch(name)
    if match is None:
        raise CacheError("name must be CLASS/FILE_generated_PROMPT_NUMBER.jpg")
    content = read_inside(source.root / _DIFFUSEMIX_DATA, name)
    fields = _one_class(match["folder"], classes) | {
        "source_file": match["file"],
        "prompt": match["prompt"],
        "variant": int(match["number"]),
    }
    return from_file(content, describe_foreign(source.method or "diffusemix", content, fields))


def _load_classified(source: ImportFolder, classes: ClassNames, name: str) -> Record:
    folder, _, rest = name.partition("/")
    if not rest:
        raise CacheError("image must lie in the folder of its class")
    content = read_inside(source.root, name)
    fields = _one_class(folder, classes)
    return from_file(content, describe_foreign(source.method or "image_folder", content, fields))


def _one_class(folder: str, classes: ClassNames) -> dict[str, Scalar]:
    label = classes.label(folder)
    return {
        "source_class": folder,
        "source_label": label,
        "target_class": folder,
        "target_label": label,
    }
