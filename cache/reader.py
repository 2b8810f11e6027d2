"""The part of a store that reads: records, the log and the indexes."""

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice, takewhile
from typing import Any

import numpy as np

from cache.backend import index
from cache.backend.claims import Claims, Owner, Pins, Status
from cache.backend.environment import Environment
from cache.backend.opening import SCHEMA_VERSION
from cache.backend.tables import (
    Recipe,
    Tables,
    Transaction,
    get_number,
    have_records,
    list_recipes,
    numbers,
)
from cache.errors import CorruptRecordError
from cache.keys import SEPARATOR, Scalar, check_keys, first_key, source_id
from cache.record import Record, parse, read_summary

_LOG_PART = 8192
"""Log positions read in one transaction."""
_REQUESTS_PART = 1024
"""Requests read in one transaction."""
_HOUR_S = 3600.0


class Reader:
    """Reads what a cache holds, in short transactions; `Store` documents the methods."""

    def __init__(self, environment: Environment) -> None:
        """Read the cache of `environment`."""
        self._environment = environment

    def count(self) -> int:
        """Return the number of records."""
        with self._environment.transaction() as (txn, tables):
            return int(txn.stat(tables.records)["entries"])

    def inspect(self, key: bytes) -> Record | None:
        """Return the record under `key`, its image not yet decoded."""
        check_keys((key,))
        with self._environment.transaction(buffers=True) as (txn, tables):
            value = txn.get(key, db=tables.records)
            return None if value is None else parse(key, value)

    def find(self, prefix: str, limit: int) -> list[bytes]:
        """Return at most `limit` keys whose hexadecimal form starts with `prefix`, ascending."""
        first, prefix = first_key(prefix), prefix.lower()
        with self._environment.transaction() as (txn, tables), txn.cursor(tables.records) as cursor:
            if not cursor.set_range(first):
                return []
            keys = cursor.iternext(values=False)
            return list(islice(takewhile(lambda key: key.hex().startswith(prefix), keys), limit))

    def contains(self, keys: Sequence[bytes]) -> list[bool]:
        """Return whether each key has a record."""
        check_keys(keys)
        with self._environment.transaction() as (txn, tables):
            return have_records(txn, tables, keys)

    def status(self, keys: Sequence[bytes]) -> list[Status]:
        """Return what became of each key."""
        check_keys(keys)
        with self._environment.transaction() as (txn, tables):
            claims = Claims(txn, tables, time.time())
            return [claims.status(key) for key in keys]

    def position(self) -> int:
        """Return the last position of the log."""
        with self._environment.transaction() as (txn, tables):
            return index.last_position(txn, tables)

    def tail(self, after: int, limit: int | None) -> list[tuple[int, bytes]]:
        """Return the positions above `after` with their keys."""
        found: list[tuple[int, bytes]] = []
        wanted = math.inf if limit is None else limit
        while len(found) < wanted:
            size = int(min(_LOG_PART, wanted - len(found)))
            with self._environment.transaction() as (txn, tables):
                part = index.read_log_after(txn, tables, found[-1][0] if found else after, size)
            found += part
            if len(part) < size:
                break
        return found

    def sample(
        self, rng: np.random.Generator, n: int, recipe: Mapping[str, Scalar] | None
    ) -> list[bytes]:
        """Draw `n` keys with replacement."""
        with self._environment.transaction() as (txn, tables):
            return index.sample(txn, tables, rng, n, recipe)

    def recipes(self) -> list[Recipe]:
        """Return every recipe."""
        with self._environment.transaction() as (txn, tables):
            return list_recipes(txn, tables)

    def requests(
        self, recipe: Mapping[str, Scalar] | None, after: int
    ) -> Iterator[tuple[int, bytes, dict[str, Scalar]]]:
        """Yield positions, keys and requests of the records above `after` that match."""
        with self._environment.transaction() as (txn, tables):
            positions = index.positions_of_recipe(txn, tables, recipe, after)
        for start in range(0, len(positions), _REQUESTS_PART):
            part = positions[start : start + _REQUESTS_PART]
            with self._environment.transaction(buffers=True) as (txn, tables):
                found = _requests_at(txn, tables, part)
            yield from found

    def by_source(self, source_digest: str) -> list[bytes]:
        """Return the keys of the records made from a source."""
        with self._environment.transaction() as (txn, tables):
            positions = index.positions_of_source(txn, tables, source_id(source_digest))
            rows = [index.row_at(txn, tables, position) for position in positions]
        return [row.key for row in rows if row is not None]

    def statistics(self) -> dict[str, Any]:
        """Return counts and sizes of what the cache holds."""
        with self._environment.transaction() as (txn, tables):
            return _statistics(txn, tables, time.time())


def _requests_at(
    txn: Transaction, tables: Tables, positions: Iterable[int]
) -> list[tuple[int, bytes, dict[str, Scalar]]]:
    found = []
    for position in positions:
        with suppress(CorruptRecordError):
            row = index.row_at(txn, tables, position)
            value = None if row is None else txn.get(row.key, db=tables.records)
            if row is not None and value is not None:
                request = read_summary(row.key, value).request
                found.append((position, row.key, request))
    return found


def _statistics(txn: Transaction, tables: Tables, now: float) -> dict[str, Any]:
    holders = Claims(txn, tables, now).holders()
    dead = holders.pop(None, 0)
    return {
        "schema": SCHEMA_VERSION,
        "entries": txn.stat(tables.records)["entries"],
        "position": index.last_position(txn, tables),
        "payload_bytes": get_number(txn, tables, "payload_bytes"),
        "stored_bytes": get_number(txn, tables, "stored_bytes"),
        "recipes": txn.stat(tables.recipes)["entries"],
        "by_method": numbers(txn, tables, "method/"),
        "by_data_set": _by_data_set(txn, tables),
        "by_strength": numbers(txn, tables, "strength/"),
        "made_last_hour": index.arrivals_since(txn, tables, now - _HOUR_S),
        "evicted": get_number(txn, tables, "evicted"),
        "corrupt": get_number(txn, tables, "corrupt"),
        "rejected": txn.stat(tables.rejected)["entries"],
        "rejected_by_reason": numbers(txn, tables, "rejected/"),
        "claims_live": holders.total(),
        "claims_dead": dead,
        "owners": [_owner_row(owner, count) for owner, count in holders.items() if owner],
        "pins_live": Pins(txn, tables, now).count(),
        "saliency_maps": txn.stat(tables.saliency)["entries"],
        "saliency_bytes": get_number(txn, tables, "saliency_bytes"),
    }


def _by_data_set(txn: Transaction, tables: Tables) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for name, entries in numbers(txn, tables, "data_set/").items():
        found[name] = {"entries": entries, "source_classes": {}, "target_classes": {}}
    for side in ("source", "target"):
        for counter, entries in numbers(txn, tables, f"{side}_class/").items():
            data_set, _, name = counter.partition(SEPARATOR)
            if data_set in found:
                found[data_set][f"{side}_classes"][name] = entries
    return found


def _owner_row(owner: Owner, claims: int) -> dict[str, Any]:
    return {"host": owner.host.partition("/")[0], "pid": owner.pid, "claims": claims}
