"""The sub-databases of a cache and the numbers kept in them."""

import struct
from functools import lru_cache
from typing import NamedTuple, TypeAlias

import lmdb

from cache.errors import CorruptRecordError

Transaction: TypeAlias = "lmdb.Transaction[bytes]"

_NUMBER = struct.Struct(">q")
_MAX_NAME_BYTES = 400
"""Of a counter; LMDB's keys end at 511 bytes."""


class Tables(NamedTuple):
    """Handles of the sub-databases, named as on disk."""

    records: "lmdb._Database"
    """key -> record."""
    log: "lmdb._Database"
    """position, 8 bytes big-endian, from 1 -> key and what the indexes need, by arrival."""
    members: "lmdb._Database"
    """recipe and ordinal from 0 -> position, for everything with key; for drawing at random."""
    recipes: "lmdb._Database"
    """recipe -> counts and fields."""
    by_source: "lmdb._Database"
    """source and position -> nothing."""
    served: "lmdb._Database"
    """how often served and position -> nothing; what was never served is not in it."""
    rejected: "lmdb._Database"
    """key -> reason and request."""
    claims: "lmdb._Database"
    """key -> owner and lease."""
    pins: "lmdb._Database"
    """key and owner -> owner and lease."""
    saliency: "lmdb._Database"
    """version and source -> checksum and map."""
    meta: "lmdb._Database"
    """Magic, schema version and counters."""


def pages_bytes(txn: Transaction, tables: Tables) -> int:
    """Bytes of the file that the tables fill; what it has beyond that can be written again."""
    total = 0
    for table in tables:
        found = txn.stat(table)
        pages = found["branch_pages"] + found["leaf_pages"] + found["overflow_pages"]
        total += pages * found["psize"]
    return total


def get_number(txn: Transaction, tables: Tables, name: str) -> int:
    """A number kept in meta, 0 where it was never set."""
    raw = txn.get(number_key(name), db=tables.meta)
    return 0 if raw is None else unpack_number(raw)


def put_number(txn: Transaction, tables: Tables, name: str, value: int) -> None:
    """Set a number in meta; it becomes visible with the rest of the transaction."""
    txn.put(number_key(name), _NUMBER.pack(value), db=tables.meta)


def add_number(txn: Transaction, tables: Tables, name: str, change: int) -> None:
    """Add to a number in meta."""
    put_number(txn, tables, name, get_number(txn, tables, name) + change)


def numbers(txn: Transaction, tables: Tables, prefix: str) -> dict[str, int]:
    """The numbers other than 0 whose names start with `prefix`, without it."""
    start = number_key(prefix)
    found: dict[str, int] = {}
    with txn.cursor(tables.meta) as cursor:
        if not cursor.set_range(start):
            return found
        for key, raw in cursor:
            if not key.startswith(start):
                break
            found[key[len(start) :].decode(errors="replace")] = unpack_number(raw)
    return {name: value for name, value in found.items() if value}


def clear_numbers(txn: Transaction, tables: Tables, prefix: str) -> None:
    """Set the numbers whose names start with `prefix` to 0."""
    for name in numbers(txn, tables, prefix):
        txn.delete(number_key(prefix + name), db=tables.meta)


def unpack_number(raw: bytes) -> int:
    """The number with that encoding.

    Raises:
        CorruptRecordError: If it is none.
    """
    if len(raw) != _NUMBER.size:
        raise CorruptRecordError(f"number must have {_NUMBER.size} bytes, got {len(raw)}")
    return int(_NUMBER.unpack(raw)[0])


@lru_cache(maxsize=4096)
def number_key(name: str) -> bytes:
    """Where a number is kept in meta."""
    return b"n:" + name.encode(errors="replace")[:_MAX_NAME_BYTES]
