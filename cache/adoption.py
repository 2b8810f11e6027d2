"""What a cache has beside its records, taken over from another one."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias, TypeVar

from cache import claims, contents, log, saliency
from cache.environment import Environment
from cache.errors import CorruptRecordError
from cache.eviction import Quota
from cache.index import Index, position_served
from cache.tables import Tables, Transaction

_ROWS, _BYTES = 256, 2**24
"""Of one transaction."""

Rows: TypeAlias = list[tuple[bytes, bytes]]
T = TypeVar("T")


@dataclass
class Adopted:
    """How much was taken over, and what could not be read."""

    rejections: int = 0
    served: int = 0
    """Records whose count of how often they were served was raised."""
    saliency_maps: int = 0
    problems: list[tuple[str, str]] = field(default_factory=list)
    """What could not be read, and why."""


def adopt(target: Environment, source: Environment, max_bytes: float | None) -> Adopted:
    """Take over rejections, service counts and saliency maps; done again, it changes nothing.

    What `target` has stays: a rejection of a key that has a record or a rejection there, and a map
    under the same version and source, are left. Of two counts the larger one counts.

    Raises:
        CacheFullError: If the maps do not fit under `max_bytes`, or on the disk.
    """
    adopted = Adopted()
    for part in _parts(source, "rejected"):
        with target.transaction(write=True) as (txn, tables):
            adopted.rejections += _each(part, adopted, partial(_take_rejection, txn, tables))
    for part in _parts(source, "served"):
        counts = _counts(source, part)
        with target.transaction(write=True) as (txn, tables):
            adopted.served += _each(counts, adopted, partial(_raise_count, txn, tables))
    for part in _parts(source, "saliency"):
        with target.transaction(write=True) as (txn, tables):
            adopted.saliency_maps += _each(part, adopted, partial(saliency.adopt, txn, tables))
            if max_bytes is not None:
                Quota(max_bytes, None).check(txn, tables)
    return adopted


def _parts(environment: Environment, name: str) -> Iterator[Rows]:
    start = b""
    while True:
        part: Rows = []
        size = 0
        with (
            environment.transaction() as (txn, tables),
            txn.cursor(getattr(tables, name)) as cursor,
        ):
            is_there = cursor.set_range(start) if start else cursor.first()
            while is_there and len(part) < _ROWS and size < _BYTES:
                part.append(cursor.item())
                size += len(part[-1][1])
                is_there = cursor.next()
        if not part:
            return
        yield part
        start = part[-1][0] + b"\0"


def _each(
    part: Iterable[tuple[bytes, T]], adopted: Adopted, take: Callable[[bytes, T], bool]
) -> int:
    taken = 0
    for key, what in part:
        try:
            taken += take(key, what)
        except CorruptRecordError as error:
            adopted.problems.append((key.hex(), str(error)))
    return taken


def _take_rejection(txn: Transaction, tables: Tables, key: bytes, raw: bytes) -> bool:
    if contents.is_present(txn, tables, key) or claims.is_rejected(txn, tables, key):
        return False
    claims.reject_as(txn, tables, key, raw)
    return True


def _counts(source: Environment, part: Rows) -> list[tuple[bytes, int]]:
    with source.transaction() as (txn, tables):
        rows = [log.row_at(txn, tables, position_served(name)) for name, _ in part]
    return [(row.key, row.served) for row in rows if row is not None]


def _raise_count(txn: Transaction, tables: Tables, key: bytes, served: int) -> bool:
    position = contents.position_of(txn, tables, key)
    row = None if position is None else log.row_at(txn, tables, position)
    if position is None or row is None or row.served >= served:
        return False
    Index(txn, tables).add_served(position, served - row.served)
    return True
