"""A walk through everything a cache holds, in short transactions."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

from cache import log
from cache.environment import Environment
from cache.errors import CorruptRecordError
from cache.record import method_of, parse, position_of
from cache.tables import Tables, Transaction, get_number, numbers

_RECORDS = 64
"""Read in one transaction; decoded outside it."""
_POSITIONS = 4096

_Chunk: TypeAlias = list[tuple[bytes, bytes, bool]]
_Part: TypeAlias = list[tuple[int, bytes, bool]]


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

    @property
    def is_clean(self) -> bool:
        """Whether every record, the log and the accounting agree."""
        return not self.problems


def verify(
    environment: Environment, progress: Callable[[int, int], None] | None = None
) -> VerifyReport:
    """Check every record and decode it, check the log against them, and check the accounting."""
    report = VerifyReport()
    methods: Counter[str] = Counter()
    with environment.transaction() as (txn, tables):
        before = log.last_position(txn, tables)
        total = sum(txn.stat(table)["entries"] for table in (tables.records, tables.log))

    def tell() -> None:
        if progress is not None:
            done = report.records + report.positions
            progress(done, max(done, total))

    for chunk in _records(environment):
        for key, value, is_logged in chunk:
            report.payload_bytes += len(value)
            _check_record(report, methods, key, value, is_logged)
        report.records += len(chunk)
        tell()
    for part in _positions(environment):
        missing = [Problem("log names a missing record", key, at) for at, key, ok in part if not ok]
        report.problems += missing
        report.positions += len(part)
        tell()
    _check_accounting(environment, report, methods, before)
    return report


def _check_record(
    report: VerifyReport, methods: Counter[str], key: bytes, value: bytes, is_logged: bool
) -> None:
    try:
        stored = parse(key, value)
        stored.decode()
    except CorruptRecordError as error:
        report.problems.append(Problem(str(error), key))
        return
    methods[method_of(stored.request)] += 1
    if not is_logged:
        report.problems.append(Problem("record is not in the log", key, stored.position))


def _check_accounting(
    environment: Environment, report: VerifyReport, methods: Counter[str], before: int
) -> None:
    with environment.transaction() as (txn, tables):
        if log.last_position(txn, tables) != before:
            return  # others wrote meanwhile, the walk saw only a part of that
        payload = get_number(txn, tables, "payload_bytes")
        counted = numbers(txn, tables, "method/")
    if payload != report.payload_bytes:
        report.problems.append(
            Problem(f"accounting gives {payload} bytes, records have {report.payload_bytes}")
        )
    if report.is_clean and counted != dict(methods):
        report.problems.append(Problem(f"accounting gives {counted}, records {dict(methods)}"))


def _records(environment: Environment) -> Iterator[_Chunk]:
    last = b""
    while True:
        chunk: _Chunk = []
        with environment.transaction() as (txn, tables), txn.cursor(tables.records) as cursor:
            is_there = cursor.set_range(last + b"\0") if last else cursor.first()
            while is_there and len(chunk) < _RECORDS:
                key, value = cursor.item()
                chunk.append((key, value, _is_logged(txn, tables, key, value)))
                is_there = cursor.next()
        if not chunk:
            return
        yield chunk
        last = chunk[-1][0]


def _is_logged(txn: Transaction, tables: Tables, key: bytes, value: bytes) -> bool:
    position = position_of(value)
    return position is not None and log.key_at(txn, tables, position) == key


def _positions(environment: Environment) -> Iterator[_Part]:
    last = 0
    while True:
        with environment.transaction() as (txn, tables), txn.cursor(tables.records) as cursor:
            found = log.read_after(txn, tables, last, _POSITIONS)
            part = [(position, key, cursor.set_key(key)) for position, key in found]
        if not part:
            return
        yield part
        last = part[-1][0]
