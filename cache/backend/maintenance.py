"""A walk through everything a cache holds, in short transactions.

A file without free pages in place of one that eviction has emptied.

Taking out what is broken, so that it can be made again, and mending what leads to the rest.

Another data file in place of a cache's, while nobody has it open.

LMDB's processes hold a shared lock on the first byte of its lock file while they have it open. An
exclusive one therefore means that nobody has, and keeps those out who come meanwhile: writers wait
in LMDB for it before they open the data, readers have opened the old file by then and notice that
it was replaced. Those locks end when the process closes any descriptor of the file, so the lock
file is opened and closed here only while LMDB has not got it open in this process.
"""

import fcntl
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeAlias

import lmdb

from cache.backend import claims, index, operations, saliency
from cache.backend.directory import COMPACT, DATA, LOCK, check_free
from cache.backend.environment import Environment
from cache.backend.index import Row
from cache.backend.opening import note_sound, open_handle, worded
from cache.backend.schema import open_tables, rebuild
from cache.backend.tables import (
    Tables,
    Tally,
    Transaction,
    add_number,
    get_number,
    miscounts,
    pages_bytes,
)
from cache.errors import CacheError, CorruptRecordError
from cache.keys import facts_of
from cache.record import parse, position_of

_RECORDS = 64
"""Read in one transaction; decoded outside it."""
_POSITIONS = 4096

Progress: TypeAlias = Callable[[int, int], None]
"""Told how many of how many records and log positions are done."""


@dataclass(frozen=True)
class Problem:
    """One thing that is not as it was written."""

    what: str
    key: bytes | None = None
    position: int | None = None


@dataclass
class VerifyReport:
    """What a walk through a cache found."""

    records: int = 0
    """Records that were read, broken ones included."""
    positions: int = 0
    """Log positions that were read."""
    payload_bytes: int = 0
    """Size of all records read."""
    problems: list[Problem] = field(default_factory=list)
    dropped: list[bytes] = field(default_factory=list)
    """Keys of the records that a repair has taken out."""

    @property
    def is_clean(self) -> bool:
        """Whether every record, the log and the accounting agree."""
        return not self.problems

    @property
    def broken_keys(self) -> set[bytes]:
        """Keys that the problems name; not all of their records need be broken."""
        return {problem.key for problem in self.problems if problem.key}


class _Seen(NamedTuple):
    key: bytes
    value: bytes
    position: int
    row: Row | None
    missing: list[str]


def verify(environment: Environment, progress: Progress | None = None) -> VerifyReport:
    """Check every record and decode it, check the log and indexes against them, and the counts."""
    report, tally = VerifyReport(), Tally()
    with environment.transaction() as (txn, tables):
        before = _changes(txn, tables)
        total = sum(txn.stat(table)["entries"] for table in (tables.records, tables.log))

    def tell() -> None:
        if progress is not None:
            done = report.records + report.positions
            progress(done, max(done, total))

    for chunk in _records(environment):
        for seen in chunk:
            _check_record(report, tally, seen)
        report.records += len(chunk)
        tell()
    for count, problems in _positions(environment):
        report.positions += count
        report.problems += problems
        tell()
    with environment.transaction() as (txn, tables):
        for what, key in (*claims.unreadable(txn, tables), *saliency.unreadable(txn, tables)):
            report.problems.append(Problem(what, key))
        if _changes(txn, tables) == before:  # else others wrote, and the walk saw a part of that
            found = miscounts(txn, tables, tally, report.payload_bytes, report.is_clean)
            report.problems += map(Problem, found)
    return report


def _check_record(report: VerifyReport, tally: Tally, seen: _Seen) -> None:
    report.payload_bytes += len(seen.value)
    try:
        stored = parse(seen.key, seen.value)
        stored.check()
    except CorruptRecordError as error:
        report.problems.append(Problem(str(error), seen.key))
        return
    facts = facts_of(stored.request)
    tally.add(facts, len(seen.value))
    row = seen.row
    problems = seen.missing if row else ["record is not in the log"]
    if row and (row.recipe_id, row.source_id, row.size) != (
        *(facts.recipe_id, facts.source_id),
        len(seen.value),
    ):
        problems = [*problems, "log row does not fit its record"]
    report.problems += [Problem(what, seen.key, seen.position) for what in problems]


def _changes(txn: Transaction, tables: Tables) -> tuple[int, ...]:
    return tuple(get_number(txn, tables, name) for name in ("position", "evicted", "corrupt"))


def _records(environment: Environment) -> Iterator[list[_Seen]]:
    last = b""
    while True:
        chunk: list[_Seen] = []
        with environment.transaction() as (txn, tables), txn.cursor(tables.records) as cursor:
            is_there = cursor.set_range(last + b"\0") if last else cursor.first()
            while is_there and len(chunk) < _RECORDS:
                chunk.append(_look_up(txn, tables, *cursor.item()))
                is_there = cursor.next()
        if not chunk:
            return
        yield chunk
        last = chunk[-1].key


def _look_up(txn: Transaction, tables: Tables, key: bytes, value: bytes) -> _Seen:
    position = position_of(value) or 0
    try:
        row = index.row_at(txn, tables, position)
    except CorruptRecordError:
        row = None
    if row is None or row.key != key:
        return _Seen(key, value, position, None, [])
    return _Seen(key, value, position, row, index.missing(txn, tables, position, row))


def _positions(environment: Environment) -> Iterator[tuple[int, list[Problem]]]:
    """Parts of the log: how many rows, and what is wrong with them."""
    start = b""
    while True:
        count, problems = 0, []
        with environment.transaction() as (txn, tables), txn.cursor(tables.log) as cursor:
            is_there = cursor.set_range(start) if start else cursor.first()
            while is_there and count < _POSITIONS:
                place, raw = cursor.item()
                problems += _check_row(txn, tables, place, raw)
                count, start = count + 1, place + b"\0"
                is_there = cursor.next()
        if not count:
            return
        yield count, problems


def _check_row(txn: Transaction, tables: Tables, place: bytes, raw: bytes) -> list[Problem]:
    try:
        position, row = index.unpack_position(place), Row.from_bytes(raw)
    except CorruptRecordError as error:
        return [Problem(str(error))]
    with txn.cursor(tables.records) as cursor:
        if cursor.set_key(row.key):
            return []
    return [Problem("log names a missing record", row.key, position)]


def compact(environment: Environment) -> int:
    """Replace the file of a cache by a copy without free pages; bytes that the disk got back.

    Raises:
        CacheError: If another process has the cache open.
        CacheFullError: If the disk has no room for the copy.
    """
    environment.open()  # makes or migrates it, or says why that cannot be
    path = environment.path
    with environment.reserved(), alone(path) as copy:
        before = (path / DATA).stat().st_size
        try:
            _copy(path, copy)
        except lmdb.Error as error:
            raise worded(path, error) from error
        put_in_place(path / COMPACT, path)
        return before - (path / DATA).stat().st_size


def _copy(path: Path, copy: int) -> None:
    handle = open_handle(path, readonly=True, lock=False)
    try:
        tables = open_tables(handle, path)
        with handle.begin() as txn:
            needed = pages_bytes(txn, tables)
        check_free(path, needed)
        handle.copyfd(copy, compact=True)
    finally:
        handle.close()
    os.fsync(copy)


def mend(environment: Environment, keys: Iterable[bytes]) -> list[bytes]:
    """Drop broken records among `keys`, and write all that follows from the others anew.

    One transaction: nobody else writes meanwhile, all may read. What it drops is returned.
    """
    with environment.transaction(write=True) as (txn, tables):
        dropped = [key for key in keys if _is_broken(txn, tables, key)]
        for key in dropped:
            txn.delete(key, db=tables.records)
        dropped += rebuild(txn, tables)[1]
        saliency.drop_unreadable(txn, tables)
        add_number(txn, tables, "corrupt", len(dropped))
    return dropped


def drop_if_broken(txn: Transaction, tables: Tables, key: bytes, now: float) -> bool:
    """Take out the record under `key` with all that leads to it, if it cannot be read."""
    if not _is_broken(txn, tables, key):
        return False
    position = _find(txn, tables, key)
    if position is None:  # nothing leads to it; what was counted of it is left to a repair
        txn.delete(key, db=tables.records)
    else:
        operations.remove(txn, tables, [position], now)
    add_number(txn, tables, "corrupt", 1)
    return True


def _is_broken(txn: Transaction, tables: Tables, key: bytes) -> bool:
    value = txn.get(key, db=tables.records)
    if value is None:
        return False
    try:
        parse(key, value).check()
    except CorruptRecordError:
        return True
    return False


def _find(txn: Transaction, tables: Tables, key: bytes) -> int | None:
    try:
        return operations.position_of(txn, tables, key)
    except CorruptRecordError:  # its header does not say: look for it in the whole log
        rows = index.walk_log(txn, tables)
    return next((position for position, row in rows if row.key == key), None)


def put_in_place(file: Path, path: Path) -> None:
    """Make `file`, which is sound and on the disk, the data file of the cache at `path`."""
    file.replace(path / DATA)
    _sync_directory(path)
    note_sound(path, durable=True)
    # Those who wait for the lock take the lock file as they find it: leave it as for the new file.
    open_handle(path, readonly=False).close()


@contextmanager
def alone(path: Path) -> Iterator[int]:
    """The file for a copy, empty, while no other process has the cache open or replaces its file.

    Raises:
        CacheError: If another process has.
    """
    copy = os.open(path / COMPACT, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        _lock(
            copy, f"cache {path} is being compacted by another process; try again when that is done"
        )
        lock = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            _lock(lock, f"cache {path} is open in another process; end that first")
            os.ftruncate(copy, 0)
            yield copy
        finally:
            os.close(lock)
            _remove(path / COMPACT, copy)
    finally:
        os.close(copy)


def _remove(path: Path, file: int) -> None:
    # After the swap another process may have made its own.
    with suppress(FileNotFoundError):
        if os.path.samestat(path.stat(), os.fstat(file)):
            path.unlink()


def _lock(file: int, refusal: str) -> None:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1)
    except OSError as error:
        raise CacheError(refusal) from error


def _sync_directory(path: Path) -> None:
    directory = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
