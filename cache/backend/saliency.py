"""Saliency maps beside the records, one for each version and source image.

Also `adopt`, which copies the maps, rejections and service counts of another cache.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias, TypeVar

from cache.backend import claims, index, records
from cache.backend.environment import Environment
from cache.backend.eviction import Quota
from cache.backend.index import Index, position_served
from cache.backend.tables import Tables, Transaction, add_number, has_record, put_number
from cache.errors import CacheError, CorruptRecordError
from cache.keys import source_id

MAX_MAP_BYTES = 2**24
"""Largest size of one map."""

_VERSION_BYTES = 16
_CHECKSUM_BYTES = 16
_VERSION_PERSON = b"online-aug ver 1"
_PERSON = b"online-aug sal 1"
_PART_ROWS, _PART_BYTES = 256, 2**24
"""Most rows and bytes that one transaction of `adopt` copies."""

Rows: TypeAlias = list[tuple[bytes, bytes]]
T = TypeVar("T")


class SaliencyMaps:
    """The part of a store that keeps saliency maps; `Store` documents the methods."""

    def __init__(self, environment: Environment, quota: Quota) -> None:
        """Work on the cache of `environment`, within `quota`."""
        self._environment, self._quota = environment, quota

    def get(self, version: str, source: str) -> bytes | None:
        """Return the map of a source image, or None if there is none."""
        key = version_id(version) + source_id(source)
        with self._environment.transaction() as (txn, tables):
            value = txn.get(key, db=tables.saliency)
            return None if value is None else check(key, value)

    def put(self, version: str, maps: Mapping[str, bytes]) -> None:
        """Write maps by source digest, in place of earlier ones."""
        for source, data in maps.items():
            if len(data) > MAX_MAP_BYTES:
                raise CacheError(
                    f"saliency map must be at most {MAX_MAP_BYTES} bytes, got {len(data)} "
                    f"for {source}"
                )
        with self._environment.transaction(write=True) as (txn, tables):
            _write(txn, tables, version, maps)
            self._quota.check_saliency(txn, tables)

    def drop(self, version: str) -> int:
        """Remove all maps of a version and return how many there were."""
        start, count, size = version_id(version), 0, 0
        with self._environment.transaction(write=True) as (txn, tables):
            with txn.cursor(tables.saliency) as cursor:
                while cursor.set_range(start) and cursor.key().startswith(start):
                    size += len(cursor.value())
                    count += 1
                    cursor.delete()
            add_number(txn, tables, "saliency_bytes", -size)
        return count


def _write(txn: Transaction, tables: Tables, version: str, maps: Mapping[str, bytes]) -> None:
    start = version_id(version)
    for source, data in maps.items():
        key = start + source_id(source)
        old = txn.get(key, db=tables.saliency)
        value = _checksum(key, data) + data
        txn.put(key, value, db=tables.saliency)
        add_number(txn, tables, "saliency_bytes", len(value) - (0 if old is None else len(old)))


def version_id(version: str) -> bytes:
    """Return the digest that the keys of a version start with."""
    text = version.encode(errors="surrogatepass")
    return hashlib.blake2b(text, digest_size=_VERSION_BYTES, person=_VERSION_PERSON).digest()


def check(key: bytes, value: bytes) -> bytes:
    """Return the map in `value`.

    Raises:
        CorruptRecordError: If a byte has changed since it was written.
    """
    data = value[_CHECKSUM_BYTES:]
    if value[:_CHECKSUM_BYTES] != _checksum(key, data):
        raise CorruptRecordError(
            f"saliency map {key.hex()} is corrupt: its checksum does not match"
        )
    return data


def _checksum(key: bytes, data: bytes) -> bytes:
    digest = hashlib.blake2b(data, digest_size=_CHECKSUM_BYTES, person=_PERSON)
    digest.update(key)
    return digest.digest()


def unreadable(txn: Transaction, tables: Tables) -> list[tuple[str, bytes]]:
    """Return the maps that cannot be read, as error and key."""
    found = []
    with txn.cursor(tables.saliency) as cursor:
        for key, value in cursor:
            try:
                check(key, value)
            except CorruptRecordError as error:
                found.append((str(error), key))
    return found


def drop_unreadable(txn: Transaction, tables: Tables) -> None:
    """Remove the maps that cannot be read, and count the bytes of the others anew."""
    for _, key in unreadable(txn, tables):
        txn.delete(key, db=tables.saliency)
    with txn.cursor(tables.saliency) as cursor:
        put_number(txn, tables, "saliency_bytes", sum(map(len, cursor.iternext(keys=False))))


@dataclass
class Adopted:
    """The number of items that `adopt` has copied, and the items that could not be read."""

    rejections: int = 0
    served: int = 0
    """Number of records whose service count was raised."""
    saliency_maps: int = 0
    problems: list[tuple[str, str]] = field(default_factory=list)
    """Key and error of each item that could not be read."""


def adopt(target: Environment, source: Environment, quota: Quota) -> Adopted:
    """Copy rejections, service counts and saliency maps; doing it again changes nothing.

    What `target` has stays: a rejection is not copied if its key has a record or a rejection there,
    nor a map if there is one of the same version and source. The larger of two counts is kept.

    Raises:
        CacheFullError: If the maps do not fit into `quota` or on the disk.
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
            adopted.saliency_maps += _each(part, adopted, partial(_take_map, txn, tables))
            quota.check_saliency(txn, tables)
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
            while is_there and len(part) < _PART_ROWS and size < _PART_BYTES:
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
    if has_record(txn, tables, key) or claims.is_rejected(txn, tables, key):
        return False
    claims.reject_as(txn, tables, key, raw)
    return True


def _counts(source: Environment, part: Rows) -> list[tuple[bytes, int]]:
    with source.transaction() as (txn, tables):
        rows = [index.row_at(txn, tables, position_served(name)) for name, _ in part]
    return [(row.key, row.served) for row in rows if row is not None]


def _raise_count(txn: Transaction, tables: Tables, key: bytes, served: int) -> bool:
    position = records.position_of(txn, tables, key)
    row = None if position is None else index.row_at(txn, tables, position)
    if position is None or row is None or row.served >= served:
        return False
    Index(txn, tables).add_served(position, served - row.served)
    return True


def _take_map(txn: Transaction, tables: Tables, key: bytes, value: bytes) -> bool:
    check(key, value)
    is_new = txn.put(key, value, overwrite=False, db=tables.saliency)
    if is_new:
        add_number(txn, tables, "saliency_bytes", len(value))
    return is_new
