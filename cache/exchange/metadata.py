"""Metadata beside image files: records as rows of a table, CSV files, class names."""

import csv
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from cache.errors import CacheError
from cache.exchange.image_files import MAX_TEXT_BYTES, Description, bounded_lines, open_regular
from cache.keys import Scalar, label_of, request_key
from cache.record import Record

REQUEST_COLUMNS = ("method", "source_label", "target_label", "strength", "prompt")
"""Fields of the request with a column of their own, for people who filter a table."""
CLASS_COLUMNS = ("data_set", "source_class", "target_class")
"""Names of data set and classes, as in `Entry.classes`."""
COLUMNS = ("key", "created", *CLASS_COLUMNS, *REQUEST_COLUMNS, "soft_label", "request", "scores")

_MAX_JSON_CHARACTERS = 2**21
_MAX_CLASS_FILE_BYTES = 2**24
_MAX_NAME_BYTES = 100
_UNSAFE = re.compile(r'[\x00-\x1f\x7f/\\:*?"<>|\ud800-\udfff]')
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
"""Names that Windows keeps for devices."""


def to_row(record: Record, names: "ClassNames") -> dict[str, str]:
    """Return the columns of a record; `soft_label`, `request` and `scores` are JSON objects.

    Numbers in them are exact.

    Raises:
        CacheError: If there are names but none for its label.
    """
    label = names.soft_label_of(record)
    values = {name: record.request.get(name) for name in REQUEST_COLUMNS}
    return {
        "key": record.key.hex(),
        "created": repr(record.created),
        **{name: record.classes.get(name, "") for name in CLASS_COLUMNS},
        **{name: "" if value is None else str(value) for name, value in values.items()},
        "soft_label": "" if label is None else json.dumps(label, ensure_ascii=False),
        "request": json.dumps(record.request, ensure_ascii=False),
        "scores": json.dumps(record.scores),
    }


def from_row(row: Mapping[str, Any]) -> Description:
    """Read a record's request, scores, time and class names from a row.

    Of other columns with values of the request nothing is read.

    Raises:
        CacheError: If one of them is missing or malformed, or the key is not that of the request.
    """
    request = _json_scalars("request", row.get("request"))
    scores = _json_scalars("scores", row.get("scores") or "{}")
    if not all(isinstance(score, int | float) for score in scores.values()):
        raise CacheError("scores must be numbers")
    if request_key(request).hex() != row.get("key"):
        raise CacheError("key must be the request's own")
    classes = {name: row.get(name) or "" for name in CLASS_COLUMNS}
    if not all(isinstance(name, str) for name in classes.values()):
        raise CacheError(f"{', '.join(CLASS_COLUMNS)} must be text")
    return Description(
        request=request,
        classes={field: name for field, name in classes.items() if name},
        scores={name: _number(score) for name, score in scores.items()},
        created=_number(row.get("created")),
    )


class TableWriter:
    """A CSV file with a header row, written row by row."""

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        """Create the file and write its header."""
        self._file: TextIO = path.open("w", newline="", encoding="utf-8")
        self._rows = csv.DictWriter(self._file, columns)
        self._rows.writeheader()

    def add(self, row: Mapping[str, Any]) -> None:
        """Write a row."""
        self._rows.writerow(row)

    def close(self) -> None:
        """Write what is buffered and close the file."""
        self._file.close()


def read_table(path: Path) -> Iterator[dict[str, str]]:
    """Yield the rows of a CSV file as mappings from its header's names.

    Raises:
        CacheError: If the file cannot be read as CSV.
    """
    with open_regular(path) as file, _large_csv_fields():
        try:
            for row in csv.DictReader(bounded_lines(file)):
                # A row of another length has None among its names or values.
                yield {name: value or "" for name, value in row.items() if isinstance(name, str)}
        except csv.Error as error:
            raise CacheError(f"table must be CSV: {error}") from error


def column_names(path: Path) -> frozenset[str]:
    """Return the names of a CSV file's columns, or an empty set if there is no file.

    Raises:
        CacheError: If the file exists and cannot be read.
    """
    if not path.exists():
        return frozenset()
    with open_regular(path) as file, _large_csv_fields():
        try:
            return frozenset(next(csv.reader(bounded_lines(file)), ()))
        except csv.Error as error:
            raise CacheError(f"table must be CSV: {error}") from error


class ClassNames:
    """Names of classes: those given by label, else each record's own, else labels as digits.

    Each has a folder name of its own that is safe.
    """

    def __init__(self, names: Sequence[str] = (), *, gamma: float | None = None) -> None:
        """Take the names in the order of the labels, from 0; without any, records name theirs.

        Args:
            names: The names.
            gamma: Exponent of the soft label of an image between two classes, as in Diff-Mix;
                None leaves it undefined.
        """
        self.names, self.gamma = tuple(names), gamma
        self._folders: dict[str | int, str] = {}
        self._taken: set[str] = set()
        for label, name in enumerate(self.names):
            self._folder(label, name, label)
        labels = reversed([*enumerate(self.names)])  # the first of two equal names counts
        self._labels = {_normalised(name): label for label, name in labels}
        self._loose_labels: dict[str, list[int]] = {}
        for label, name in enumerate(self.names):
            self._loose_labels.setdefault(_loose(name), []).append(label)

    def name_in(self, record: Record, side: str) -> str | None:
        """Return the name of the `source` or `target` class of a record; None if it has none.

        Raises:
            CacheError: If there are names but none for its label.
        """
        label = label_of(record.request, side)
        if self.names and label is not None:
            return self.names[self._checked(label)]
        name = record.class_name(side)
        return f"{label:04d}" if name is None and label is not None else name

    def folder_in(self, record: Record, side: str) -> str | None:
        """Return the folder of the `source` or `target` class of a record; None if it has none.

        Raises:
            CacheError: If there are names but none for its label.
        """
        name, label = self.name_in(record, side), label_of(record.request, side)
        if name is None:
            return None
        by_label = self.names and label is not None
        return self._folder(label if by_label and label is not None else name, name, label)

    def soft_label_of(self, record: Record) -> dict[str, float] | None:
        """Return the mass of each class of a record; None if it is not defined.

        Within a class it is 1. Between two classes `strength ** gamma` is on the target's.

        Raises:
            CacheError: If there are names but none for its label.
        """
        source, target = (self.name_in(record, side) for side in ("source", "target"))
        strength = record.request.get("strength")
        if source is None or target is None:
            return None
        if source == target:
            return {source: 1.0}
        if self.gamma is None or not isinstance(strength, int | float) or not 0 < strength <= 1:
            return None
        moved = strength**self.gamma
        return {source: 1 - moved, target: moved}

    def caption_in(self, record: Record, side: str) -> str | None:
        """Return the class for people to read, `class 7` if its name is not known."""
        label = label_of(record.request, side)
        if self.names and label is not None:
            return self.names[label] if label < len(self.names) else f"class {label}"
        return record.class_name(side) or (None if label is None else f"class {label}")

    def _checked(self, label: int) -> int:
        if label >= len(self.names):
            raise CacheError(f"classes must name label {label}, got {len(self.names)} names")
        return label

    def _folder(self, key: str | int, name: str, label: int | None) -> str:
        if key not in self._folders:
            folder = safe_name(name)
            while _normalised(folder).casefold() in self._taken:
                folder = f"{folder}-{len(self._folders) if label is None else label}"
            self._taken.add(_normalised(folder).casefold())
            self._folders[key] = folder
        return self._folders[key]

    def label(self, name: str) -> int:
        """Return the label of a class by its name or folder; underscores count as spaces.

        Case and a question mark at the end, by which some lists doubt a name, do not count unless
        two classes differ by nothing else.

        Raises:
            CacheError: If there is no such class.
        """
        if (label := self._labels.get(_normalised(name))) is not None:
            return label
        alike = self._loose_labels.get(_loose(name), [])
        if len(alike) != 1:
            raise CacheError(f"class must be a known one, got {name[:80]!r}")
        return alike[0]


def read_class_names(path: Path, *, gamma: float | None = None) -> ClassNames:
    """Read class names from a text file or an image folder; `gamma` as in `ClassNames`.

    A text file has a name a line, in the order of the labels. Of an image folder the names of its
    folders are taken in sorted order, as torchvision's ImageFolder does.

    Raises:
        CacheError: If `path` is neither, or holds no name.
    """
    try:
        names = _folder_names(path) if path.is_dir() else _lines(path)
    except (OSError, UnicodeDecodeError) as error:
        raise CacheError(f"classes must be a readable text file or folder, got {path}") from error
    if not names:
        raise CacheError(f"classes must hold a name, got none in {path}")
    return ClassNames(names, gamma=gamma)


def safe_name(name: str) -> str:
    """Turn `name` into the name of one file or folder that any system accepts.

    The result has no path separator and cannot lead to a parent folder.

    Example:
        >>> safe_name("../../etc/passwd"), safe_name(""), safe_name("Black footed Albatross")
        ('_.._etc_passwd', '_', 'Black footed Albatross')
    """
    safe = _UNSAFE.sub("_", name)
    safe = "".join(letter if letter.isprintable() else "_" for letter in safe)
    safe = safe.encode()[:_MAX_NAME_BYTES].decode(errors="ignore").strip(" .")
    return f"_{safe}" if not safe or _RESERVED.fullmatch(safe) else safe


def _json_scalars(name: str, text: object) -> dict[str, Scalar]:
    if not isinstance(text, str) or len(text) > _MAX_JSON_CHARACTERS:
        raise CacheError(f"{name} must be JSON of at most {_MAX_JSON_CHARACTERS} characters")
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CacheError(f"{name} must be JSON") from error
    if not isinstance(fields, dict) or any(isinstance(v, dict | list) for v in fields.values()):
        raise CacheError(f"{name} must be a flat JSON object")
    return fields


def _number(value: object) -> float:
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError) as error:
        raise CacheError("created and scores must be numbers") from error
    if math.isnan(number):
        raise CacheError("created and scores must be numbers, got nan")
    return number


@contextmanager
def _large_csv_fields() -> Iterator[None]:
    before = csv.field_size_limit(MAX_TEXT_BYTES)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _folder_names(path: Path) -> list[str]:
    return sorted(item.name for item in path.iterdir() if item.is_dir() and not item.is_symlink())


def _lines(path: Path) -> list[str]:
    with path.open("rb") as file:
        content = file.read(_MAX_CLASS_FILE_BYTES + 1)
    if len(content) > _MAX_CLASS_FILE_BYTES:
        raise CacheError(
            f"classes must be at most {_MAX_CLASS_FILE_BYTES} bytes, got more in {path}"
        )
    return content.decode().splitlines()


def _normalised(name: str) -> str:
    return name.replace("_", " ").replace("/", " ").strip()


def _loose(name: str) -> str:
    return _normalised(name).rstrip("?").strip().casefold()
