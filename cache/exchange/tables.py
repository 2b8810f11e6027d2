"""CSV tables, a row at a time."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from cache.errors import CacheError
from cache.exchange.files import MAX_TEXT_BYTES, bounded_lines, open_regular


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
