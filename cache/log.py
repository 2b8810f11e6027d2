"""The order of arrival: an append-only list of keys, at positions from 1."""

import struct

import numpy as np

from cache.environment import Environment
from cache.errors import CorruptRecordError
from cache.key import KEY_BYTES
from cache.tables import Tables, Transaction

_PART = 8192
_POSITION = struct.Struct(">Q")


def first_position(txn: Transaction, tables: Tables) -> int:
    """The lowest position still in the log, 0 when it is empty."""
    with txn.cursor(tables.log) as cursor:
        return _unpack(cursor.key()) if cursor.first() else 0


def last_position(txn: Transaction, tables: Tables) -> int:
    """The highest position in the log, 0 when it is empty."""
    with txn.cursor(tables.log) as cursor:
        return _unpack(cursor.key()) if cursor.last() else 0


def append(txn: Transaction, tables: Tables, position: int, key: bytes) -> None:
    """Write the next position."""
    if not txn.put(_POSITION.pack(position), key, append=True, db=tables.log):
        raise CorruptRecordError(f"log position must be new, got {position} again")


def read_after(txn: Transaction, tables: Tables, after: int, limit: int) -> list[tuple[int, bytes]]:
    """At most `limit` positions above `after` with their keys, ascending."""
    found: list[tuple[int, bytes]] = []
    with txn.cursor(tables.log) as cursor:
        is_there = cursor.set_range(_POSITION.pack(after + 1))
        while is_there and len(found) < limit:
            found.append((_unpack(cursor.key()), _checked(cursor.value())))
            is_there = cursor.next()
    return found


def read_in_parts(environment: Environment, after: int, limit: float) -> list[tuple[int, bytes]]:
    """As `read_after`, in transactions short enough to pin nothing for long."""
    found: list[tuple[int, bytes]] = []
    while len(found) < limit:
        size = int(min(_PART, limit - len(found)))
        with environment.transaction() as (txn, tables):
            part = read_after(txn, tables, found[-1][0] if found else after, size)
        found += part
        if len(part) < size:
            break
    return found


def key_at(txn: Transaction, tables: Tables, position: int) -> bytes | None:
    """The key at that position, None where there is none."""
    return txn.get(_POSITION.pack(position), db=tables.log)


def sample_keys(
    txn: Transaction, tables: Tables, rng: np.random.Generator, count: int
) -> list[bytes]:
    """`count` keys, each uniform over the log, drawn with replacement; none from an empty log."""
    first, last = first_position(txn, tables), last_position(txn, tables)
    keys: list[bytes] = []
    while last and len(keys) < count:
        drawn = rng.integers(first, last, size=count - len(keys), endpoint=True)
        # A position without an entry is drawn anew, which leaves the others equally likely.
        found = (key_at(txn, tables, int(position)) for position in drawn)
        keys += [key for key in found if key is not None]
    return keys


def _unpack(raw: bytes) -> int:
    return int(_POSITION.unpack(raw)[0])


def _checked(key: bytes) -> bytes:
    if len(key) != KEY_BYTES:
        raise CorruptRecordError(f"log must hold keys of {KEY_BYTES} bytes, got {len(key)}")
    return key
