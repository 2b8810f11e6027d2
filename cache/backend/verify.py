"""Verifying everything that a cache holds, in short transactions, and repairing it."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from cache.backend import claims, index, records, saliency
from cache.backend.environment import Environment
from cache.backend.index import Index, Row, pack_position, row_at, unpack_position
from cache.backend.tables import (
    Tables,
    Tally,
    Transaction,
    add_number,
    clear_accounting,
    get_number,
    miscounts,
    put_number,
)
from cache.errors import CorruptRecordError
from cache.keys import index_terms
from cache.record import Draft, parse, position_in, read_summary

_RECORDS = 64
"""Records read in one transaction; they are decoded outside it."""
_POSITIONS = 4096
"""Log rows read in one transaction."""
_POSITION_BYTES = 8

Progress: TypeAlias = Callable[[int, int], None]
"""Called with how many of how many records and log positions are done."""


@dataclass(frozen=True)
class Problem:
    """One item that is not as it was written."""

    what: str
    key: bytes | None = None
    position: int | None = None


@dataclass
class VerifyReport:
    """The result of verifying a cache."""

    records: int = 0
    """Number of records read, broken ones included."""
    positions: int = 0
    """Number of log positions read."""
    payload_bytes: int = 0
    """Size of all records read."""
    problems: list[Problem] = field(default_factory=list)
    dropped: list[bytes] = field(default_factory=list)
    """Keys of the records that a repair has removed."""

    @property
    def is_clean(self) -> bool:
        """Whether all records can be read and agree with the log, the indexes and the counts."""
        return not self.problems

    @property
    def broken_keys(self) -> set[bytes]:
        """The keys that problems name. Not all of their records need be broken."""
        return {problem.key for problem in self.problems if problem.key}


class _Seen(NamedTuple):
    key: bytes
    value: bytes
    position: int
    row: Row | None
    missing: list[str]


def verify(environment: Environment, progress: Progress | None = None) -> VerifyReport:
    """Decode every record, and compare log, indexes and counts with the records."""
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
        if _changes(txn, tables) == before:  # else others wrote, and we have seen a part of that
            found = miscounts(txn, tables, tally, report.payload_bytes, report.is_clean)
            report.problems += map(Problem, found)
    return report


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
    position = position_in(value) or 0
    try:
        row = row_at(txn, tables, position)
    except CorruptRecordError:
        row = None
    if row is None or row.key != key:
        return _Seen(key, value, position, None, [])
    return _Seen(key, value, position, row, index.missing(txn, tables, position, row))


def _check_record(report: VerifyReport, tally: Tally, seen: _Seen) -> None:
    size = len(seen.value)
    report.payload_bytes += size
    try:
        stored = parse(seen.key, seen.value)
        stored.check()
    except CorruptRecordError as error:
        report.problems.append(Problem(str(error), seen.key))
        return
    terms = index_terms(stored.request, classes=stored.classes)
    tally.add(terms, size)
    row = seen.row
    problems = seen.missing if row else ["record is not in the log"]
    expected = (terms.recipe_id, terms.source_id, size)
    if row and (row.recipe_id, row.source_id, row.size) != expected:
        problems = [*problems, "log row does not fit its record"]
    report.problems += [Problem(what, seen.key, seen.position) for what in problems]


def _positions(environment: Environment) -> Iterator[tuple[int, list[Problem]]]:
    """Walk through the log; yield how many rows were read and what is wrong with them."""
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
        position, row = unpack_position(place), Row.from_bytes(raw)
    except CorruptRecordError as error:
        return [Problem(str(error))]
    with txn.cursor(tables.records) as cursor:
        if cursor.set_key(row.key):
            return []
    return [Problem("log names a missing record", row.key, position)]


def repair(environment: Environment, keys: Iterable[bytes]) -> list[bytes]:
    """Drop broken records among `keys`, write all that follows from the others anew.

    It is one transaction: others cannot write meanwhile, but can read.

    Returns:
        The keys of the dropped records.
    """
    with environment.transaction(write=True) as (txn, tables):
        dropped = [key for key in keys if records.is_broken(txn, tables, key)]
        for key in dropped:
            txn.delete(key, db=tables.records)
        dropped += _rebuild(txn, tables)
        saliency.drop_unreadable(txn, tables)
        add_number(txn, tables, "corrupt", len(dropped))
    return dropped


def _rebuild(txn: Transaction, tables: Tables) -> list[bytes]:
    """Write log, indexes and counts anew from the records, and return the keys of dropped records.

    Records whose request cannot be read are dropped. Times of arrival and service counts are taken
    from the log if that can still be read.
    """
    highest = _highest_position(txn, tables)
    rows, lost, tally = _rows(txn, tables)
    for key in lost:
        txn.delete(key, db=tables.records)
    for table in (tables.log, tables.members, tables.by_source, tables.served):
        txn.drop(table, delete=False)
    clear_accounting(txn, tables)
    log = Index(txn, tables)
    displaced = _write_in_place(log, rows, highest)
    for row in displaced:  # if two records name one position, one moves behind all others
        terms = records.terms_of(row.key, txn.get(row.key, db=tables.records))
        tally.remove(row.recipe_id, row.size, terms)
        size = _move(txn, tables, row.key, highest + 1)
        if size is None or terms is None:
            txn.delete(row.key, db=tables.records)
            lost.append(row.key)
            continue
        highest += 1
        log.add(highest, row._replace(size=size))
        tally.add(terms, size)
    put_number(txn, tables, "position", highest)
    tally.write(txn, tables)
    claims.drop_unreadable(txn, tables)
    return lost


def _highest_position(txn: Transaction, tables: Tables) -> int:
    with txn.cursor(tables.log) as cursor:
        last = unpack_position(cursor.key()) if cursor.last() else 0
    return max(last, get_number(txn, tables, "position"))


def _rows(txn: Transaction, tables: Tables) -> tuple[list[bytes], list[bytes], Tally]:
    # Position and row of each record are one string of bytes: a million take less memory so.
    rows, lost, tally = [], [], Tally()
    with txn.cursor(tables.records) as cursor:
        for key, value in cursor:
            try:
                seen = read_summary(key, value)
            except CorruptRecordError:
                lost.append(key)
                continue
            terms = index_terms(seen.request, classes=seen.classes)
            arrived, served = _history(txn, tables, seen.position, key) or (seen.created, 0)
            size = len(value)
            row = Row(key, terms.recipe_id, terms.source_id, arrived, size, served, 0, 0)
            rows.append(pack_position(seen.position) + row.to_bytes())
            tally.add(terms, size)
    return sorted(rows), lost, tally


def _history(
    txn: Transaction, tables: Tables, position: int, key: bytes
) -> tuple[float, int] | None:
    try:
        row = row_at(txn, tables, position)
    except CorruptRecordError:
        return None
    return (row.arrived, row.served) if row is not None and row.key == key else None


def _write_in_place(log: Index, rows: list[bytes], highest: int) -> list[Row]:
    """Write rows at their own positions, with times that never go back; return those left over."""
    last, arrived, displaced = 0, 0.0, []
    for raw in rows:
        position = unpack_position(raw[:_POSITION_BYTES])
        row = Row.from_bytes(raw[_POSITION_BYTES:])
        arrived = max(arrived, row.arrived)
        row = row._replace(arrived=arrived)
        if last < position <= highest:
            log.add(position, row)
            last = position
        else:
            displaced.append(row)
    return [row._replace(arrived=arrived) for row in displaced]


def _move(txn: Transaction, tables: Tables, key: bytes, position: int) -> int | None:
    """Write a record anew for another position; return its size, or None if it is unreadable."""
    try:
        draft = Draft.copy(parse(key, txn.get(key, db=tables.records) or b""))
    except CorruptRecordError:
        return None
    txn.put(key, draft.seal(position), db=tables.records)
    return draft.size
