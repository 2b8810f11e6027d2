"""A walk through everything a cache holds, in short transactions."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from cache import accounting, claims, index, log, saliency
from cache.accounting import Tally
from cache.environment import Environment
from cache.errors import CorruptRecordError
from cache.facts import facts_of
from cache.log import Row
from cache.record import parse, position_of
from cache.tables import Tables, Transaction, get_number

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
            found = accounting.miscounts(txn, tables, tally, report.payload_bytes, report.is_clean)
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
        row = log.row_at(txn, tables, position)
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
        position, row = log.unpack_position(place), Row.from_bytes(raw)
    except CorruptRecordError as error:
        return [Problem(str(error))]
    with txn.cursor(tables.records) as cursor:
        if cursor.set_key(row.key):
            return []
    return [Problem("log names a missing record", row.key, position)]
