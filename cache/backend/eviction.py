"""Which records go first where room is needed, and the making of that room."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Protocol

from cache.backend import index, operations
from cache.backend.claims import Pins
from cache.backend.index import position_of_member, positions_served
from cache.backend.tables import (
    Tables,
    Transaction,
    add_number,
    entries_of,
    get_number,
    stored_size,
)
from cache.errors import CacheError, CacheFullError
from cache.keys import check_keys

_GIB = 2**30


class Policy(Protocol):
    """An order in which records may go; frozen and picklable."""

    def candidates(self, txn: Transaction, tables: Tables) -> Iterator[int]:
        """Positions of the log, first to go first; some may come twice."""


@dataclass(frozen=True)
class Oldest:
    """What arrived first goes first."""

    def candidates(self, txn: Transaction, tables: Tables) -> Iterator[int]:
        """Every position, ascending."""
        with txn.cursor(tables.log) as cursor:
            is_there = cursor.first()
            while is_there:
                yield index.unpack_position(cursor.key())
                is_there = cursor.next()


@dataclass(frozen=True)
class ServedFirst:
    """What was served `max_times` or more goes first, then what `then` says."""

    max_times: int = 1
    then: Policy | None = Oldest()

    def candidates(self, txn: Transaction, tables: Tables) -> Iterator[int]:
        """Positions of what was served, by how often, then the others."""
        return chain(positions_served(txn, tables, self.max_times), _next(self.then, txn, tables))


@dataclass(frozen=True)
class RecipeFirst:
    """Records of the recipes with these identifiers go first, newest first, then the others."""

    recipe_ids: tuple[bytes, ...]
    then: Policy | None = Oldest()

    def candidates(self, txn: Transaction, tables: Tables) -> Iterator[int]:
        """Positions of the recipes' members, from the last, then the others."""
        for recipe_id in self.recipe_ids:
            for ordinal in reversed(range(entries_of(txn, tables, recipe_id))):
                yield position_of_member(txn, tables, recipe_id, ordinal)
        yield from _next(self.then, txn, tables)


@dataclass(frozen=True)
class Keys:
    """These records and no others."""

    keys: tuple[bytes, ...]

    def candidates(self, txn: Transaction, tables: Tables) -> Iterator[int]:
        """Positions of those that are there."""
        check_keys(self.keys)
        for key in self.keys:
            position = operations.position_of(txn, tables, key)
            if position is not None:
                yield position


@dataclass(frozen=True)
class Quota:
    """How much a cache may take, and what goes where it would take more."""

    max_bytes: float
    policy: Policy | None
    """None lets nothing go."""

    def make_room(
        self, txn: Transaction, tables: Tables, sizes: list[int], spared: set[bytes], now: float
    ) -> None:
        """Evict until records of these sizes fit in.

        Args:
            txn: Writes.
            tables: Of the cache.
            sizes: Bytes of the new records.
            spared: Keys that stay, because they are part of the same call.
            now: Unix time at which pins are judged.

        Raises:
            CacheError: If one record alone is larger than the quota.
            CacheFullError: If there is not enough that may go.
        """
        needed = sum(map(stored_size, sizes))
        excess = used_bytes(txn, tables) + needed - self.max_bytes
        if not needed or excess <= 0:
            return
        if max(map(stored_size, sizes)) > self.max_bytes:
            raise CacheError(
                f"cache.max_gib must hold at least one record, got {self.max_bytes / _GIB:g} GiB "
                f"for one of {max(sizes)} bytes; raise it"
            )
        positions, freed = self._victims(txn, tables, excess, spared, now)
        if freed < excess:
            raise CacheFullError(
                f"cache.max_gib must leave room: {needed} bytes came to {self.max_bytes / _GIB:g} "
                f"GiB and {excess - freed:.0f} more than may be evicted are in use; raise it, "
                "name an eviction policy, end what pins records, or use another cache"
            )
        let_go(txn, tables, positions, now)

    def check(self, txn: Transaction, tables: Tables) -> None:
        """Refuse what this transaction has written beside the records.

        Raises:
            CacheFullError: If the cache takes more than the quota now.
        """
        used = used_bytes(txn, tables)
        if used > self.max_bytes:
            raise CacheFullError(
                f"cache.max_gib must leave room for saliency maps, got {self.max_bytes / _GIB:g} "
                f"GiB for {used} bytes with them; raise it or drop older maps or records"
            )

    def _victims(
        self, txn: Transaction, tables: Tables, excess: float, spared: set[bytes], now: float
    ) -> tuple[list[int], int]:
        if self.policy is None:
            return [], 0
        found, freed = [], 0
        for position, size in evictable(txn, tables, self.policy, spared, now):
            if freed >= excess:
                break
            found.append(position)
            freed += stored_size(size)
        return found, freed


def evictable(
    txn: Transaction, tables: Tables, policy: Policy, spared: set[bytes], now: float
) -> Iterator[tuple[int, int]]:
    """Positions and sizes of what may go, in the order of `policy`, each once."""
    seen: set[int] = set()
    pins = Pins(txn, tables, now)
    for position in policy.candidates(txn, tables):
        row = None if position in seen else index.row_at(txn, tables, position)
        seen.add(position)
        if row is not None and row.key not in spared and not pins.holds(row.key):
            yield position, row.size


def evict_some(
    txn: Transaction, tables: Tables, policy: Policy, now: float, most: int, down_to: float
) -> int:
    """Evict at most so many records, until the cache takes `down_to` bytes; how many."""
    used = used_bytes(txn, tables)
    positions: list[int] = []
    for position, size in evictable(txn, tables, policy, set(), now):
        if used <= down_to or len(positions) == most:
            break
        positions.append(position)
        used -= stored_size(size)
    let_go(txn, tables, positions, now)
    return len(positions)


def let_go(txn: Transaction, tables: Tables, positions: list[int], now: float) -> None:
    """Evict the records at these positions."""
    operations.remove(txn, tables, positions, now)
    add_number(txn, tables, "evicted", len(positions))


def used_bytes(txn: Transaction, tables: Tables) -> int:
    """What a quota counts: file pages of all records, and all saliency maps."""
    return get_number(txn, tables, "stored_bytes") + get_number(txn, tables, "saliency_bytes")


def _next(policy: Policy | None, txn: Transaction, tables: Tables) -> Iterator[int]:
    return iter(()) if policy is None else policy.candidates(txn, tables)
