"""Write records of a cache in another format: all of them or, on an error, nothing."""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Protocol

from cache.errors import CacheError, CorruptRecordError
from cache.exchange.folder_formats import DiffMixWriter, LeftOutError
from cache.exchange.image_folder import FolderWriter
from cache.exchange.metadata import CLASS_COLUMNS, ClassNames, to_row
from cache.exchange.records import Report, Unreadable
from cache.exchange.webdataset import WebDatasetWriter
from cache.keys import label_of
from cache.record import Record

_ROWS_PER_GROUP = 10_000
"""Rows of a Parquet file that are held in memory before they are written."""

MANIFEST = "export.json"
"""Written last into an exported folder; `force` replaces only folders that have it."""


class Writer(Protocol):
    """Writes records one after another."""

    def add(self, record: Record) -> None:
        """Write one record, or raise `LeftOutError` if the format has no place for it."""

    def close(self) -> None:
        """Finish; no more records follow."""


class ParquetWriter:
    """Writes the metadata of records as a Parquet file, one row each, without images."""

    def __init__(self, path: Path, classes: ClassNames) -> None:
        """Create the file.

        Raises:
            CacheError: If pyarrow is not installed.
        """
        self._arrow = _import_pyarrow()
        self._schema = _parquet_schema(self._arrow)
        self._classes = classes
        self._file = self._arrow.parquet.ParquetWriter(path, self._schema, compression="zstd")
        self._rows: list[dict[str, Any]] = []

    def add(self, record: Record) -> None:
        """Write one record's row.

        Raises:
            CacheError: If its class has no name.
        """
        source, target = (label_of(record.request, side) for side in ("source", "target"))
        strength = record.request.get("strength")
        self._rows.append(
            {
                **to_row(record, self._classes),
                "created": record.created,
                "position": record.position,
                "source_label": source,
                "target_label": target,
                "source_class": self._classes.name_in(record, "source"),
                "target_class": self._classes.name_in(record, "target"),
                "strength": float(strength) if isinstance(strength, int | float) else None,
                "codec": record.codec.name,
                "height": record.height,
                "width": record.width,
                "bytes": len(record.image_bytes),
            }
        )
        if len(self._rows) == _ROWS_PER_GROUP:
            self._flush()

    def close(self) -> None:
        """Write the last rows and the footer."""
        if self._rows:
            self._flush()
        self._file.close()

    def _flush(self) -> None:
        self._file.write_table(self._arrow.Table.from_pylist(self._rows, schema=self._schema))
        self._rows.clear()


FOLDERS: dict[str, Callable[[Path, ClassNames], Writer]] = {
    "folder": FolderWriter,
    "diff-mix": DiffMixWriter,
    "webdataset": WebDatasetWriter,
}
"""Formats that are a folder."""
FORMATS = (*FOLDERS, "parquet")


def check_export(target: Path, format: str, *, force: bool) -> None:
    """Raise before any work is done for what `export` would refuse at its start.

    Raises:
        CacheError: If the target exists or the format's package is missing.
    """
    check_free(target, force=force)
    if format == "parquet":
        _import_pyarrow()


def export(
    records: Iterable[Record | Unreadable],
    target: Path,
    format: str,
    classes: ClassNames,
    *,
    force: bool,
) -> Report:
    """Write records to `target` and report those that were left out.

    A record is left out if it cannot be read or the format has no place for it.

    Args:
        records: Records to write, in this order.
        target: Folder to make; a file for Parquet.
        format: One of `FORMATS`.
        classes: Names of the classes, for folders and tables.
        force: Replace an earlier export.

    Raises:
        CacheError: If no record can be written, a class has no name, records for a folder are of
            several data sets, or the target exists or cannot be written.
    """
    report = Report()
    if format == "parquet":
        with (
            staged_file(target, force=force) as path,
            closing(ParquetWriter(path, classes)) as writer,
        ):
            _write(records, writer, report)
        return report
    with _staged_folder(target, force=force) as folder:
        with closing(FOLDERS[format](folder, classes)) as writer:
            _write(_of_one_data_set(records), writer, report)
        manifest = {"format": format, "records": report.done}
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    return report


def check_free(target: Path, *, force: bool) -> None:
    """Raise if a target exists and is not to be replaced.

    Raises:
        CacheError: If so.
    """
    if not force and os.path.lexists(target):
        raise not_free(target)


def not_free(target: object) -> CacheError:
    """Return the error of a target that exists."""
    return CacheError(f"target must not exist, got {target}; name another or give --force")


def not_replaceable(target: object) -> CacheError:
    """Return the error of a target that is not to be replaced even by force."""
    return CacheError(
        f"target must be new, empty or an earlier export to be replaced, got {target} with other "
        "files; name another folder"
    )


@contextmanager
def staged_file(target: Path, *, force: bool) -> Iterator[Path]:
    """Yield the path of an empty file that becomes `target` if the block succeeds.

    Raises:
        CacheError: If `target` exists without `force`, is a folder, or cannot be written.
    """
    check_free(target, force=force)
    if target.is_dir():
        raise CacheError(f"target must be a file's name, got the folder {target}")
    with _staged(target, lambda path: path.touch(), _remove_file, os.replace) as staged:
        yield staged


@contextmanager
def _staged_folder(target: Path, *, force: bool) -> Iterator[Path]:
    check_free(target, force=force)
    if force and target.exists() and not _is_replaceable(target):
        raise not_replaceable(target)
    with _staged(target, lambda path: path.mkdir(), _remove_folder, _replace_folder) as staged:
        yield staged


@contextmanager
def _staged(
    target: Path,
    make: Callable[[Path], None],
    remove: Callable[[Path], None],
    move: Callable[[Path, Path], None],
) -> Iterator[Path]:
    target = target.absolute()
    staged = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        make(staged)
        yield staged
        move(staged, target)
    except OSError as error:
        raise CacheError(
            f"target must be writable with room for all, got {target}: {error.strerror or error}; "
            "nothing was left there"
        ) from error
    finally:
        remove(staged)


def _of_one_data_set(records: Iterable[Record | Unreadable]) -> Iterator[Record | Unreadable]:
    first: str | None = None
    for record in records:
        if isinstance(record, Record) and (name := record.classes.get("data_set")):
            first = first or name
            if name != first:
                raise CacheError(
                    f"records must be of one data set, got {first} and {name}, whose labels mean "
                    "other classes: choose one by --data-set"
                )
        yield record


def _write(records: Iterable[Record | Unreadable], writer: Writer, report: Report) -> None:
    for record in records:
        if isinstance(record, Unreadable):
            report.leave_out(record.key.hex(), record.problem)
            continue
        try:
            writer.add(record)
            report.done += 1
        except (CorruptRecordError, LeftOutError) as error:
            report.leave_out(record.key.hex(), error)
    if not report.done:
        reason = f": {report.problems[0][1]}" if report.problems else ""
        raise CacheError(f"there must be a record to export, got none that fits{reason}")


def _import_pyarrow() -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise CacheError(
            "format parquet needs the package pyarrow; pip install 'online-aug[exchange]'"
        ) from error
    return pyarrow


def _parquet_schema(arrow: Any) -> Any:
    text, integer, number = arrow.string(), arrow.int64(), arrow.float64()
    columns = {
        **dict.fromkeys(
            ("key", "method", "prompt", "soft_label", "request", "scores", "codec"), text
        ),
        **dict.fromkeys(CLASS_COLUMNS, text),
        **dict.fromkeys(("position", "source_label", "target_label"), integer),
        **dict.fromkeys(("height", "width", "bytes"), integer),
        **dict.fromkeys(("created", "strength"), number),
    }
    return arrow.schema(list(columns.items()))


def _is_replaceable(target: Path) -> bool:
    if target.is_symlink() or not target.is_dir():
        return False
    return (target / MANIFEST).is_file() or not any(target.iterdir())


def _replace_folder(staged: Path, target: Path) -> None:
    if not os.path.lexists(target):
        staged.rename(target)
        return
    old = staged.with_suffix(".old")
    target.rename(old)
    try:
        staged.rename(target)
    except OSError:
        old.rename(target)
        raise
    _remove_folder(old)


def _remove_folder(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)


def _remove_file(path: Path) -> None:
    path.unlink(missing_ok=True)
