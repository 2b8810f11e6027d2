"""From a cache to a folder of another format.

The metadata of records as a Parquet file, without images.

Output that is there whole or not at all: made beside its place, moved there at the end.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Protocol

from cache.errors import CacheError, CorruptRecordError
from cache.exchange.folder_formats import DiffMixWriter, FolderWriter
from cache.exchange.merging import LeftOutError, Report, Unreadable
from cache.exchange.rows import ClassNames, label_of, to_row
from cache.exchange.webdataset import WebDatasetWriter
from cache.record import Record


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


_ROWS = 10_000
"""Of a row group: what is held in memory."""


class ParquetWriter:
    """Writes one row a record: what the other formats' tables have, sizes, codec and position."""

    def __init__(self, path: Path, classes: ClassNames) -> None:
        """Start the file.

        Raises:
            CacheError: If pyarrow is not installed.
        """
        self._arrow = check_pyarrow()
        self._schema = _schema(self._arrow)
        self._classes = classes
        self._file = self._arrow.parquet.ParquetWriter(path, self._schema, compression="zstd")
        self._rows: list[dict[str, Any]] = []

    def add(self, stored: Record) -> None:
        """Write one record's row.

        Raises:
            CacheError: If its class has no name.
        """
        source, target = (label_of(stored.request, side) for side in ("source", "target"))
        text = to_row(stored)
        strength = stored.request.get("strength")
        self._rows.append(
            {
                **text,
                "created": stored.created,
                "position": stored.position,
                "source_label": source,
                "target_label": target,
                "source_class": None if source is None else self._classes.name(source),
                "target_class": None if target is None else self._classes.name(target),
                "strength": float(strength) if isinstance(strength, int | float) else None,
                "codec": stored.codec.name,
                "height": stored.height,
                "width": stored.width,
                "bytes": len(stored.image_bytes),
            }
        )
        if len(self._rows) == _ROWS:
            self._flush()

    def close(self) -> None:
        """Write the last rows and the footer."""
        if self._rows:
            self._flush()
        self._file.close()

    def _flush(self) -> None:
        self._file.write_table(self._arrow.Table.from_pylist(self._rows, schema=self._schema))
        self._rows.clear()


def check_pyarrow() -> Any:
    """The pyarrow package.

    Raises:
        CacheError: If it is not installed.
    """
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise CacheError(
            "format parquet needs the package pyarrow; pip install 'online-aug[exchange]'"
        ) from error
    return pyarrow


def _schema(arrow: Any) -> Any:
    text, whole = arrow.string(), arrow.int64()
    names = {
        **dict.fromkeys(("key", "method", "prompt", "request", "scores", "codec"), text),
        **dict.fromkeys(("source_class", "target_class"), text),
        **dict.fromkeys(("position", "source_label", "target_label"), whole),
        **dict.fromkeys(("height", "width", "bytes"), whole),
        **dict.fromkeys(("created", "strength"), arrow.float64()),
    }
    return arrow.schema(list(names.items()))


MANIFEST = "export.json"
"""Written last into every exported folder; what `force` may replace is known by it."""


@contextmanager
def staged_folder(target: Path, *, force: bool) -> Iterator[Path]:
    """An empty folder that becomes `target` if nothing is raised, and is removed otherwise.

    `target` must not exist; with `force` it may be empty or an earlier export, which is replaced.

    Raises:
        CacheError: If `target` may not be replaced, or the disk refuses.
    """
    check_free(target, force=force)
    if force and target.exists() and not _is_replaceable(target):
        raise CacheError(
            f"target must be new, empty or an earlier export to be replaced, got {target} with "
            "other files; name another folder"
        )
    with _staged(target, lambda path: path.mkdir(), _remove_folder, _replace_folder) as staged:
        yield staged


@contextmanager
def staged_file(target: Path, *, force: bool) -> Iterator[Path]:
    """A file's path that becomes `target` if nothing is raised, and is removed otherwise.

    Raises:
        CacheError: If `target` exists and not `force`, or is a folder, or the disk refuses.
    """
    check_free(target, force=force)
    if target.is_dir():
        raise CacheError(f"target must be a file's name, got the folder {target}")
    with _staged(target, lambda path: path.touch(), _remove_file, os.replace) as staged:
        yield staged


def check_free(target: Path, *, force: bool) -> None:
    """Refuse a target that exists.

    Raises:
        CacheError: If it does and not `force`.
    """
    if not force and os.path.lexists(target):
        raise CacheError(f"target must not exist, got {target}; name another or give --force")


def write_manifest(folder: Path, fields: dict[str, Any]) -> None:
    """Mark `folder` as a whole export."""
    (folder / MANIFEST).write_text(json.dumps(fields, indent=2) + "\n")


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


def _is_replaceable(target: Path) -> bool:
    if target.is_symlink() or not target.is_dir():
        return False
    return (target / MANIFEST).is_file() or not any(target.iterdir())


def _remove_folder(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)


def _remove_file(path: Path) -> None:
    path.unlink(missing_ok=True)
