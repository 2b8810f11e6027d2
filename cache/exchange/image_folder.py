"""Our own export: class folders and a table in JSON lines, which Hugging Face's datasets read."""

import json
import math
from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from cache.exchange.folder_formats import FoundImage, ImportFolder, load_described, refuse
from cache.exchange.image_files import as_file, bounded_lines, open_regular
from cache.exchange.metadata import ClassNames, to_row
from cache.keys import label_of
from cache.record import Record

TABLE = "metadata.jsonl"
"""The name by which `imagefolder` finds the table."""

_UNLABELLED = "unlabelled"
"""Folder of exported records without a class."""
_SCORE = "score_"
"""Start of the columns that have one score each."""
_OWN_COLUMNS = frozenset({"file_name", "key", "request"})


class FolderWriter:
    """Writes `CLASS/KEY.png` (or `.jpg`, `.webp`) and a table; the class is the target's.

    Hugging Face's `imagefolder` reads the table, torchvision's ImageFolder the folders.
    """

    def __init__(self, folder: Path, classes: ClassNames) -> None:
        """Start in an empty folder."""
        self._folder, self._classes = folder, classes
        self._made: set[str] = set()
        self._table = _Table(folder / TABLE)

    def add(self, record: Record) -> None:
        """Write one record.

        Raises:
            CacheError: If its class has no name.
        """
        name, folder = self._class_of(record)
        suffix, content = as_file(record)
        if folder not in self._made:
            (self._folder / folder).mkdir()
            self._made.add(folder)
        file_name = f"{folder}/{record.key.hex()}{suffix}"
        (self._folder / file_name).write_bytes(content)
        row = {"file_name": file_name, "label": name, **to_row(record, self._classes)}
        row |= _typed(record)
        self._table.add({column: value for column, value in row.items() if value is not None})

    def close(self) -> None:
        """Finish the table."""
        self._table.close()

    def _class_of(self, record: Record) -> tuple[str, str]:
        for side in ("target", "source"):
            name = self._classes.name_in(record, side)
            folder = self._classes.folder_in(record, side)
            if name is not None and folder is not None:
                return name, folder
        return "", _UNLABELLED


def is_export(root: Path) -> bool:
    """Return whether the folder is an export of format `folder`."""
    if not (root / TABLE).exists():
        return False
    with open_regular(root / TABLE) as file:
        first = _row(next(bounded_lines(file), ""))
    return first is not None and first.keys() >= _OWN_COLUMNS


def read_export(source: ImportFolder) -> Iterator[FoundImage]:
    """Find the images of an exported folder, with their own requests."""
    with open_regular(source.root / TABLE) as file:
        for number, line in enumerate(bounded_lines(file), 1):
            row = _row(line)
            if row is None:
                yield f"{TABLE}, line {number}", partial(refuse, "row must be a JSON object")
            else:
                name = str(row.get("file_name", ""))
                yield name, partial(load_described, source.root, name, row)


class _Table:
    """Writes rows as JSON objects that all have the same columns, None where a row has no value.

    A reader takes the columns and their types from the first rows. So the rows come first that
    bring a column; the others wait in a draft, since all columns are known at the end.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._draft_path = path, path.with_suffix(".draft")
        self._draft = self._draft_path.open("w", encoding="utf-8")
        self._columns: dict[str, None] = {}
        self._first: list[dict[str, Any]] = []

    def add(self, row: dict[str, Any]) -> None:
        if row.keys() <= self._columns.keys():
            self._draft.write(json.dumps(row) + "\n")
        else:
            self._columns |= dict.fromkeys(row)
            self._first.append(row)

    def close(self) -> None:
        self._draft.close()
        with (
            self._draft_path.open(encoding="utf-8") as draft,
            self._path.open("w", encoding="utf-8") as table,
        ):
            for row in chain(self._first, map(json.loads, draft)):
                whole = {name: row.get(name) for name in self._columns}
                table.write(json.dumps(whole, ensure_ascii=False) + "\n")
        self._draft_path.unlink()


def _typed(record: Record) -> dict[str, Any]:
    values: dict[str, Any] = {
        "created": record.created,
        "source_label": label_of(record.request, "source"),
        "target_label": label_of(record.request, "target"),
        "strength": record.request.get("strength"),
        **{f"{_SCORE}{name}": score for name, score in record.scores.items()},
    }
    return {name: value if _is_finite(value) else None for name, value in values.items()}


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _row(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None
