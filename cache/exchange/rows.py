"""A record without its image as a row of text, and back.

Classes by label: their names as the data has them, and as folders that lead nowhere else.

CSV tables, a row at a time.
"""

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
from cache.keys import Scalar, request_key
from cache.record import Record

FIELDS = ("method", "source_label", "target_label", "strength", "prompt")
"""Of the request, given a column each for those who filter; `request` holds all."""
COLUMNS = ("key", "created", *FIELDS, "request", "scores")

_MAX_TEXT = 2**21


def to_row(stored: Record) -> dict[str, str]:
    """The columns of a record; request and scores as JSON, numbers exact."""
    fields = {name: _text(stored.request.get(name)) for name in FIELDS}
    return {
        "key": stored.key.hex(),
        "created": repr(stored.created),
        **fields,
        "request": json.dumps(stored.request, ensure_ascii=False),
        "scores": json.dumps(stored.scores),
    }


def from_row(row: Mapping[str, Any]) -> Description:
    """What a row describes; only `key`, `created`, `request` and `scores` are read.

    Raises:
        CacheError: If they are missing, malformed, or the key is not that of the request.
    """
    request = _scalars("request", row.get("request"))
    scores = _scalars("scores", row.get("scores") or "{}")
    if not all(isinstance(score, int | float) for score in scores.values()):
        raise CacheError("scores must be numbers")
    if request_key(request).hex() != row.get("key"):
        raise CacheError("key must be the request's own")
    return Description(
        request=request,
        scores={name: _number(score) for name, score in scores.items()},
        created=_number(row.get("created")),
    )


def label_of(request: Mapping[str, Scalar], side: str) -> int | None:
    """The label of the `source` or `target` class where the request names one."""
    label = request.get(f"{side}_label")
    is_label = isinstance(label, int) and not isinstance(label, bool) and label >= 0
    return int(label) if is_label and label is not None else None


def _scalars(name: str, text: object) -> dict[str, Scalar]:
    if not isinstance(text, str) or len(text) > _MAX_TEXT:
        raise CacheError(f"{name} must be JSON of at most {_MAX_TEXT} characters")
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


def _text(value: Scalar) -> str:
    return "" if value is None else str(value)


_MAX_BYTES = 100
_MAX_FILE_BYTES = 2**24
_UNSAFE = re.compile(r'[\x00-\x1f\x7f/\\:*?"<>|\ud800-\udfff]')
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


def safe_name(name: str) -> str:
    """`name` as the name of one file or folder on any system: no separator, no way up.

    Example:
        >>> safe_name("../../etc/passwd"), safe_name(""), safe_name("Black footed Albatross")
        ('_.._etc_passwd', '_', 'Black footed Albatross')
    """
    safe = _UNSAFE.sub("_", name)
    safe = "".join(letter if letter.isprintable() else "_" for letter in safe)
    safe = safe.encode()[:_MAX_BYTES].decode(errors="ignore").strip(" .")
    return f"_{safe}" if not safe or _RESERVED.fullmatch(safe) else safe


class ClassNames:
    """Names and folders of classes by label; without names, the label itself in four digits."""

    def __init__(self, names: Sequence[str] = ()) -> None:
        """Take the names in the order of the labels, from 0."""
        self.names = tuple(names)
        self._folders: dict[int, str] = {}
        taken: set[str] = set()
        for label, name in enumerate(self.names):
            folder = safe_name(name)
            while _loose(folder).casefold() in taken:
                folder = f"{folder}-{label}"
            taken.add(_loose(folder).casefold())
            self._folders[label] = folder
        self._labels = {_loose(name): label for label, name in reversed([*enumerate(self.names)])}

    def name(self, label: int) -> str:
        """The class's own name.

        Raises:
            CacheError: If there are names but none for `label`.
        """
        if not self.names:
            return self.folder(label)
        if not 0 <= label < len(self.names):
            raise CacheError(f"classes must name label {label}, got {len(self.names)} names")
        return self.names[label]

    def spoken(self, label: int) -> str:
        """The name for people to read, `class 7` where there is none."""
        return self.names[label] if 0 <= label < len(self.names) else f"class {label}"

    def folder(self, label: int) -> str:
        """The name of its folder: safe, and no other class's.

        Raises:
            CacheError: If there are names but none for `label`.
        """
        if not self.names:
            return safe_name(f"{label:04d}")
        self.name(label)
        return self._folders[label]

    def label(self, name: str) -> int:
        """The label of a class by its name or its folder, spaces and underscores alike.

        Raises:
            CacheError: If no class is called so.
        """
        try:
            return self._labels[_loose(name)]
        except KeyError as error:
            raise CacheError(f"class must be a known one, got {name[:80]!r}") from error


def read_class_names(path: Path) -> ClassNames:
    """The classes of a text file, a name a line in the order of the labels, or of an image folder.

    Of a folder, as torchvision's ImageFolder has them: the names of its folders in order.

    Raises:
        CacheError: If it is neither, or has no name.
    """
    try:
        names = _folder_names(path) if path.is_dir() else _lines(path)
    except (OSError, UnicodeDecodeError) as error:
        raise CacheError(f"classes must be a readable text file or folder, got {path}") from error
    if not names:
        raise CacheError(f"classes must hold a name, got none in {path}")
    return ClassNames(names)


def _folder_names(path: Path) -> list[str]:
    return sorted(item.name for item in path.iterdir() if item.is_dir() and not item.is_symlink())


def _lines(path: Path) -> list[str]:
    with path.open("rb") as file:
        content = file.read(_MAX_FILE_BYTES + 1)
    if len(content) > _MAX_FILE_BYTES:
        raise CacheError(f"classes must be at most {_MAX_FILE_BYTES} bytes, got more in {path}")
    return content.decode().splitlines()


def _loose(name: str) -> str:
    return name.replace("_", " ").replace("/", " ").strip()


class TableWriter:
    """A CSV file with a row of heads."""

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        """Start the file."""
        self._file: TextIO = path.open("w", newline="", encoding="utf-8")
        self._rows = csv.DictWriter(self._file, columns)
        self._rows.writeheader()

    def add(self, row: Mapping[str, Any]) -> None:
        """Write a row."""
        self._rows.writerow(row)

    def close(self) -> None:
        """Write what is still held back."""
        self._file.close()


def read_table(path: Path) -> Iterator[dict[str, str]]:
    """The rows of a CSV file by its heads.

    Raises:
        CacheError: If it cannot be read as one.
    """
    with open_regular(path) as file, _large_fields():
        try:
            for row in csv.DictReader(bounded_lines(file)):
                # A row of another length has None among its names or values.
                yield {name: value or "" for name, value in row.items() if isinstance(name, str)}
        except csv.Error as error:
            raise CacheError(f"table must be CSV: {error}") from error


def heads(path: Path) -> frozenset[str]:
    """The names of a CSV file's columns, none if it is no such file.

    Raises:
        CacheError: If it is there and cannot be read.
    """
    if not path.exists():
        return frozenset()
    with open_regular(path) as file, _large_fields():
        try:
            return frozenset(next(csv.reader(bounded_lines(file)), ()))
        except csv.Error as error:
            raise CacheError(f"table must be CSV: {error}") from error


@contextmanager
def _large_fields() -> Iterator[None]:
    before = csv.field_size_limit(MAX_TEXT_BYTES)
    try:
        yield
    finally:
        csv.field_size_limit(before)
