"""The synthetic folder of Diff-Mix's scripts: `data/SOURCE/TARGET-000000-0.7.png` and `meta.csv`.

Its `meta.csv` has the columns First Directory, Second Directory, Number, Strength and Path; in it
class names have spaces where folders have underscores. Ours has the records' own columns too,
which the scripts do not look at.
"""

import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from cache.errors import CacheError
from cache.exchange.files import read_inside, walk_images
from cache.exchange.found import Found, Source, foreign
from cache.exchange.images import as_png, from_file
from cache.exchange.names import ClassNames
from cache.exchange.report import LeftOutError
from cache.exchange.rows import COLUMNS, from_row, label_of, to_row
from cache.exchange.tables import TableWriter, heads, read_table
from cache.key import Scalar
from cache.record import Record

TABLE, DATA = "meta.csv", "data"
_PATH = re.compile(
    r"(?P<source>[^/]+)/(?P<target>.+)-(?P<number>\d{1,18})-(?P<strength>[^/]+)\.png"
)


class DiffMixWriter:
    """Writes the folder, its images as PNG of the records' pixels."""

    def __init__(self, folder: Path, classes: ClassNames) -> None:
        """Start in an empty folder."""
        self._data, self._classes = folder / DATA, classes
        self._data.mkdir()
        self._made: set[str] = set()
        self._number = 0
        heads = ("First Directory", "Second Directory", "Number", "Strength", "Path")
        self._table = TableWriter(folder / TABLE, (*heads, *COLUMNS))

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


def read(source: Source) -> Iterator[Found]:
    """The images of the folder: those of `meta.csv`, or without one all whose names fit.

    Requests of our own are read back; those of the scripts are pieced together from the names.
    """
    columns = heads(source.root / TABLE)
    if {"Path", "key", "request"} <= columns:
        for row in read_table(source.root / TABLE):
            yield row.get("Path", ""), partial(_load_exported, source.root / DATA, row)
        return
    classes = source.class_names(source.root / DATA)
    for name in _listed(source.root) if columns else walk_images(source.root / DATA):
        yield name, partial(_load_foreign, source, classes, name)


def is_one(root: Path) -> bool:
    """Whether a folder looks like the scripts' output."""
    if not (root / DATA).is_dir():
        return False
    names = walk_images(root / DATA)
    return "First Directory" in heads(root / TABLE) or bool(_PATH.fullmatch(next(names, "")))


def _listed(root: Path) -> Iterator[str]:
    for row in read_table(root / TABLE):
        yield row.get("Path", "").replace("\\", "/")


def _load_exported(data: Path, row: Mapping[str, str]) -> Record:
    return from_file(read_inside(data, row.get("Path", "")), from_row(row))


def _load_foreign(source: Source, classes: ClassNames, name: str) -> Record:
    content = read_inside(source.root / DATA, name)
    fields = _fields(name, classes)
    return from_file(content, foreign(source.method or "diff_mix", content, fields))


def _fields(name: str, classes: ClassNames) -> dict[str, Scalar]:
    match = _PATH.fullmatch(name)
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
