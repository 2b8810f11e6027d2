"""Storing records within a quota: which ones are evicted first to make room for new ones."""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Protocol

from cache.backend import index, records
from cache.backend.claims import Claims, Pins
from cache.backend.directory import check_free
from cache.backend.environment import Environment
from cache.backend.index import position_of_member, positions_served
from cache.backend.tables import (
    Tables,
    Transaction,
    add_number,
    entries_of,
    get_number,
    have_records,
    pages_bytes,
    stored_size,
)
from cache.errors import CacheError, CacheFullError
from cache.keys import check_keys
from cache.record import Draft

GIB = 2**30
_EVICTED_AT_ONCE = 256
"""Records evicted in one transaction of `evict`, so that other writers need not wait for long."""


class Policy(Protocol):
    """An order in which records are evicted; frozen and picklable."""

    def candidates(self, txn: Transaction, tables: Tables) -> Iterator[int]:
        """Yield log positions in order of eviction. A position may come twice."""


@dataclass(frozen=True)
class Oldest:
    """Evict records in order of arrival."""

    def candidates(self, txn: Transaction, tables: Tables) -> Iterator[int]:
        """Yield every position, ascending."""
        with txn.cursor(tables.log) as cursor:
            is_there = cursor.first()
            while is_there:
                yield index.unpack_position(cursor.key())
                is_there = cursor.next()


@dataclass(frozen=True)
class ServedFirst:
    """Evict records served `max_times` or more first, then those that `then` names."""

    max_times: int = 1
    then: Policy | None = Oldest()

    def candidates(self, txn: Transaction, tables: Tables) -> Iterator[int]:
        """Yield positions of served records, by how often they were served, then the others."""
        return chain(positions_served(txn, tables, self.max_times), _next(self.then, txn, tables))


@dataclass(frozen=True)
class RecipeFirst:
    """Evict records of the recipes with these identifiers first, then those that `then` names."""

    recipe_ids: tuple[bytes, ...]
    then: Policy | None = Oldest()

    def candidates(self, txn: Transaction, tables: Tables) -> Iterator[int]:
        """Yield positions of the recipes' members, from the last, then the others."""
        for recipe_id in self.recipe_ids:
            for ordinal in reversed(range(entries_of(txn, tables, recipe_id))):
                yield position_of_member(txn, tables, recipe_id, ordinal)
        yield from _next(self.then, txn, tables)


@dataclass(frozen=True)
class Keys:
    """Evict these records and no others."""

    keys: tuple[bytes, ...]

    def candidates(self, txn: Transaction, tables: Tables) -> Iterator[int]:
        """Yield the positions of those that are there."""
        check_keys(self.keys)
        for key in self.keys:
            position = records.position_of(txn, tables, key)
            if position is not None:
                yield position


def _next(policy: Policy | None, txn: Transaction, tables: Tables) -> Iterator[int]:
    return iter(()) if policy is None else policy.candidates(txn, tables)


@dataclass(frozen=True)
class Quota:
    """A limit on the size of a cache, and the policy that evicts records to stay within it."""

    max_bytes: float
    """Infinite for no limit."""
    policy: Policy | None
    """None evicts nothing."""

    @classmethod
    def in_gib(cls, max_gib: float | None, policy: Policy | None) -> "Quota":
        """Return a quota of `max_gib` GiB; None is no limit."""
        return cls(math.inf if max_gib is None else max_gib * GIB, policy)

    def make_room(
        self, txn: Transaction, tables: Tables, sizes: list[int], spared: set[bytes], now: float
    ) -> None:
        """Evict records until new ones fit in.

        Args:
            txn: The transaction that writes.
            tables: Tables of the cache.
            sizes: Bytes of each new record.
            spared: Keys that stay, because they are part of the same call.
            now: Unix time at which pins are judged.

        Raises:
            CacheError: If one record alone is larger than the quota.
            CacheFullError: If not enough may be evicted.
        """
        if math.isinf(self.max_bytes) or not sizes:
            return
        needed = sum(map(stored_size, sizes))
        excess = used_bytes(txn, tables) + needed - self.max_bytes
        if excess <= 0:
            return
        if max(map(stored_size, sizes)) > self.max_bytes:
            raise CacheError(
                f"cache.max_gib must hold at least one record, got {self.max_bytes / GIB:g} GiB "
                f"for one of {max(sizes)} bytes; raise it"
            )
        positions, freed = self._victims(txn, tables, excess, spared, now)
        if freed < excess:
            raise CacheFullError(
                f"cache.max_gib must leave room: {needed} bytes came to {self.max_bytes / GIB:g} "
                f"GiB and {excess - freed:.0f} more than may be evicted are in use; raise it, "
                "name an eviction policy, end what pins records, or use another cache"
            )
        _evict_positions(txn, tables, positions, now)

    def check_saliency(self, txn: Transaction, tables: Tables) -> None:
        """Raise if the saliency maps that this transaction has written do not fit in.

        Raises:
            CacheFullError: If the cache now takes more than the quota.
        """
        if math.isinf(self.max_bytes):
            return
        used = used_bytes(txn, tables)
        if used > self.max_bytes:
            raise CacheFullError(
                f"cache.max_gib must leave room for saliency maps, got {self.max_bytes / GIB:g} "
                f"GiB for {used} bytes with them; raise it or drop older maps or records"
            )

    def _victims(
        self, txn: Transaction, tables: Tables, excess: float, spared: set[bytes], now: float
    ) -> tuple[list[int], int]:
        found: list[int] = []
        freed = 0
        if self.policy is None:
            return found, freed
        for position, size in _evictable(txn, tables, self.policy, spared, now):
            if freed >= excess:
                break
            found.append(position)
            freed += stored_size(size)
        return found, freed


def used_bytes(txn: Transaction, tables: Tables) -> int:
    """Return the bytes that a quota counts: file pages of all records, and saliency maps."""
    return get_number(txn, tables, "stored_bytes") + get_number(txn, tables, "saliency_bytes")


def insert(
    environment: Environment, quota: Quota, keys: Sequence[bytes], drafts: Sequence[Draft]
) -> int:
    """Store the drafts that are not there yet, in one transaction; return how many they were.

    Claims on `keys` end, whoever holds them, and records under `keys` are not evicted.

    Raises:
        CacheError: If one record alone is larger than the quota.
        CacheFullError: If there is no room within the quota or on the disk.
    """
    now = time.time()
    with environment.transaction(write=True) as (txn, tables):
        present = have_records(txn, tables, [draft.key for draft in drafts])
        fresh = [draft for draft, is_there in zip(drafts, present, strict=True) if not is_there]
        sizes = [draft.size for draft in fresh]
        needed = sum(map(stored_size, sizes))
        check_free(environment.path, needed, lambda: pages_bytes(txn, tables))
        quota.make_room(txn, tables, sizes, set(keys), now)
        records.append(txn, tables, fresh, now)
        claims = Claims(txn, tables, now)
        for key in keys:
            claims.drop(key)
    return len(fresh)


def evict(environment: Environment, policy: Policy, *, count: int | None, to_gib: float) -> int:
    """Evict unpinned records in short transactions; return how many.

    Args:
        environment: The cache.
        policy: Decides what is evicted, and in which order.
        count: Most records to evict; None is no limit.
        to_gib: Stop when the cache takes no more than this, GiB.
    """
    gone, wanted = 0, math.inf if count is None else count
    while gone < wanted:
        most, now = int(min(_EVICTED_AT_ONCE, wanted - gone)), time.time()
        with environment.transaction(write=True) as (txn, tables):
            fewer = _evict_some(txn, tables, policy, now, most, to_gib * GIB)
        gone += fewer
        if not fewer:
            break
    return gone


def _evict_some(
    txn: Transaction, tables: Tables, policy: Policy, now: float, most: int, down_to: float
) -> int:
    used = used_bytes(txn, tables)
    positions: list[int] = []
    for position, size in _evictable(txn, tables, policy, set(), now):
        if used <= down_to or len(positions) == most:
            break
        positions.append(position)
        used -= stored_size(size)
    _evict_positions(txn, tables, positions, now)
    return len(positions)


def _evictable(
    txn: Transaction, tables: Tables, policy: Policy, spared: set[bytes], now: float
) -> Iterator[tuple[int, int]]:
    """Yield position and size of each record that may be evicted, in the order of `policy`."""
    seen: set[int] = set()
    pins = Pins(txn, tables, now)
    for position in policy.candidates(txn, tables):
        row = None if position in seen else index.row_at(txn, tables, position)
        seen.add(position)
        if row is not None and row.key not in spared and not pins.holds(row.key):
            yield position, row.size


def _evict_positions(txn: Transaction, tables: Tables, positions: list[int], now: float) -> None:
    records.remove(txn, tables, positions, now)
    add_number(txn, tables, "evicted", len(positions))
