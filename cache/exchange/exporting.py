"""From a cache to a folder of another format."""

from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import Protocol

from cache.errors import CacheError, CorruptRecordError
from cache.exchange.diff_mix import DiffMixWriter
from cache.exchange.folder import FolderWriter
from cache.exchange.names import ClassNames
from cache.exchange.parquet import ParquetWriter, check_pyarrow
from cache.exchange.report import LeftOutError, Report
from cache.exchange.staging import check_free, staged_file, staged_folder, write_manifest
from cache.exchange.webdataset import WebDatasetWriter
from cache.record import Record
from cache.selection import Unreadable


class Writer(Protocol):
    """Takes records one after another."""

    def add(self, stored: Record) -> None:
        """Write one; LeftOutError if this format cannot have it."""

    def close(self) -> None:
        """Finish; no more follow."""


FOLDERS: dict[str, Callable[[Path, ClassNames], Writer]] = {
    "folder": FolderWriter,
    "diff-mix": DiffMixWriter,
    "webdataset": WebDatasetWriter,
}
FORMATS = (*FOLDERS, "parquet")


def check_export(target: Path, format: str, *, force: bool) -> None:
    """Refuse, before any work, what `export` would refuse.

    Raises:
        CacheError: If the target is taken or the format's package is missing.
    """
    check_free(target, force=force)
    if format == "parquet":
        check_pyarrow()


def export(
    records: Iterable[Record | Unreadable],
    target: Path,
    format: str,
    classes: ClassNames,
    *,
    force: bool,
) -> Report:
    """Write `records` to `target` as one of `FORMATS`: all of them or, on an error, nothing.

    Records that cannot be read or that the format cannot have are left out and reported.

    Raises:
        CacheError: If there is none to write, a class has no name, or the target is taken or
            cannot be written.
    """
    report = Report()
    if format == "parquet":
        with (
            staged_file(target, force=force) as path,
            closing(ParquetWriter(path, classes)) as writer,
        ):
            _write(records, writer, report)
        return report
    with staged_folder(target, force=force) as folder:
        with closing(FOLDERS[format](folder, classes)) as writer:
            _write(records, writer, report)
        write_manifest(folder, {"format": format, "records": report.done})
    return report


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
