"""The tables of a cache, the numbers kept in them, and the counts of each recipe."""

import struct
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, TypeAlias

import lmdb

from cache.errors import CorruptRecordError
from cache.keys import KEY_BYTES, IndexTerms, Scalar, decode_fields

Transaction: TypeAlias = "lmdb.Transaction[bytes]"

COUNTERS = ("method/", "data_set/", "source_class/", "target_class/", "strength/")
"""Prefixes of the counters that count records by the fields of their requests."""

_NUMBER = struct.Struct(">q")
_MAX_NAME_BYTES = 400
"""Longest name of a counter; LMDB's keys end at 511 bytes."""
_PAGE_BYTES = 4096
_PAGE_HEADER_BYTES = 16
_NODE_HEADER_BYTES = 10
_LARGEST_NODE_BYTES = 2038
_USE = struct.Struct(">QQ")


class Tables(NamedTuple):
    """Handles of the sub-databases, which have the same names on disk."""

    records: "lmdb._Database"
    """key -> record."""
    log: "lmdb._Database"
    """position, 8 bytes big-endian, from 1 -> row with the key, in order of arrival."""
    members: "lmdb._Database"
    """recipe or everything, and ordinal from 0 -> position; to draw records at random."""
    recipes: "lmdb._Database"
    """recipe -> counts and fields."""
    by_source: "lmdb._Database"
    """source and position -> nothing."""
    served: "lmdb._Database"
    """times served and position -> nothing; only for records that were served."""
    rejected: "lmdb._Database"
    """key -> reason and request."""
    claims: "lmdb._Database"
    """key -> owner and lease."""
    pins: "lmdb._Database"
    """key and owner -> owner and lease."""
    saliency: "lmdb._Database"
    """version and source -> checksum and map."""
    meta: "lmdb._Database"
    """Magic, schema version and numbers."""


def have_records(txn: Transaction, tables: Tables, keys: Iterable[bytes]) -> list[bool]:
    """Return whether each key has a record, without reading its bytes."""
    with txn.cursor(tables.records) as cursor:
        return [cursor.set_key(key) for key in keys]


def has_record(txn: Transaction, tables: Tables, key: bytes) -> bool:
    """Return whether `key` has a record, without reading its bytes."""
    return have_records(txn, tables, (key,))[0]


def pages_bytes(txn: Transaction, tables: Tables) -> int:
    """Return how many bytes of the file the tables fill. The other pages can be written again."""
    total = 0
    for table in tables:
        found = txn.stat(table)
        pages = found["branch_pages"] + found["leaf_pages"] + found["overflow_pages"]
        total += pages * found["psize"]
    return total


def stored_size(size: int) -> int:
    """Return the bytes of the file that a record of `size` bytes takes.

    LMDB gives whole pages to a record that is too large to share one.
    """
    if size + KEY_BYTES + _NODE_HEADER_BYTES > _LARGEST_NODE_BYTES:
        return -(-(size + _PAGE_HEADER_BYTES) // _PAGE_BYTES) * _PAGE_BYTES
    return size + KEY_BYTES + _NODE_HEADER_BYTES


def get_number(txn: Transaction, tables: Tables, name: str) -> int:
    """Return a number kept in meta, 0 if it was never set."""
    raw = txn.get(number_key(name), db=tables.meta)
    return 0 if raw is None else unpack_number(raw)


def put_number(txn: Transaction, tables: Tables, name: str, value: int) -> None:
    """Set a number in meta."""
    txn.put(number_key(name), _NUMBER.pack(value), db=tables.meta)


def add_number(txn: Transaction, tables: Tables, name: str, change: int) -> None:
    """Add to a number in meta."""
    put_number(txn, tables, name, get_number(txn, tables, name) + change)


def numbers(txn: Transaction, tables: Tables, prefix: str) -> dict[str, int]:
    """Return the numbers other than 0 whose names start with `prefix`, without the prefix."""
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
    """Decode a number.

    Raises:
        CorruptRecordError: If it does not have 8 bytes.
    """
    if len(raw) != _NUMBER.size:
        raise CorruptRecordError(f"number must have {_NUMBER.size} bytes, got {len(raw)}")
    return int(_NUMBER.unpack(raw)[0])


@lru_cache(maxsize=4096)
def number_key(name: str) -> bytes:
    """Return the key of a number in meta."""
    return b"n:" + name.encode(errors="replace")[:_MAX_NAME_BYTES]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A recipe with the number and size of its records."""

    id: bytes
    fields: dict[str, Scalar]
    entries: int
    payload_bytes: int


def list_recipes(txn: Transaction, tables: Tables) -> list[Recipe]:
    """Return every recipe that has records."""
    with txn.cursor(tables.recipes) as cursor:
        uses = [(recipe_id, *unpack_use(raw)) for recipe_id, raw in cursor]
    return [
        Recipe(id=name, fields=decode_fields(fields), entries=entries, payload_bytes=size)
        for name, entries, size, fields in uses
    ]


def entries_of(txn: Transaction, tables: Tables, recipe_id: bytes) -> int:
    """Return the number of records of a recipe."""
    raw = txn.get(recipe_id, db=tables.recipes)
    return unpack_use(raw)[0] if raw else 0


def unpack_use(raw: bytes) -> tuple[int, int, bytes]:
    """Decode the number of records, their bytes and the encoded fields of a recipe.

    Raises:
        CorruptRecordError: If the counts are cut off.
    """
    if len(raw) < _USE.size:
        raise CorruptRecordError("recipe index must count records and bytes")
    entries, size = _USE.unpack_from(raw)
    return entries, size, raw[_USE.size :]


class Tally:
    """The records added and removed in one transaction, summed before the counts are written."""

    def __init__(self) -> None:
        self._numbers: Counter[str] = Counter()
        self._entries: Counter[bytes] = Counter()
        self._bytes: Counter[bytes] = Counter()
        self._recipes: dict[bytes, bytes] = {}

    def add(self, terms: IndexTerms, size: int) -> None:
        """Count one record more."""
        self._recipes[terms.recipe_id] = terms.recipe
        self._numbers.update(terms.counters)
        self._count(terms.recipe_id, size, 1)

    def remove(self, recipe_id: bytes, size: int, terms: IndexTerms | None) -> None:
        """Count one record less; `terms` is None if its request can no longer be read."""
        self._numbers.subtract(terms.counters if terms else ())
        self._count(recipe_id, size, -1)

    def write(self, txn: Transaction, tables: Tables) -> None:
        """Add the sums to the counts in the cache."""
        for name, change in self._numbers.items():
            add_number(txn, tables, name, change)
        for recipe_id, change in self._entries.items():
            raw = txn.get(recipe_id, db=tables.recipes)
            had, held, fields = (
                unpack_use(raw) if raw else (0, 0, self._recipes.get(recipe_id, b""))
            )
            if had + change > 0:
                use = _USE.pack(had + change, max(0, held + self._bytes[recipe_id]))
                txn.put(recipe_id, use + fields, db=tables.recipes)
            else:
                txn.delete(recipe_id, db=tables.recipes)

    def differences(self, txn: Transaction, tables: Tables) -> list[str]:
        """Return how the counts in the cache differ from the sums, a line each."""
        found = []
        for prefix in (*COUNTERS, "stored_bytes"):
            counted = numbers(txn, tables, prefix)
            start = len(prefix)
            expected = {
                n[start:]: c for n, c in self._numbers.items() if n.startswith(prefix) and c
            }
            if counted != expected:
                found.append(f"accounting of {prefix} gives {counted}, records {expected}")
        uses = {
            recipe.id: (recipe.entries, recipe.payload_bytes)
            for recipe in list_recipes(txn, tables)
        }
        if uses != {name: (count, self._bytes[name]) for name, count in self._entries.items()}:
            found.append("accounting of recipes does not fit the records")
        return found

    def _count(self, recipe_id: bytes, size: int, sign: int) -> None:
        self._numbers["payload_bytes"] += sign * size
        self._numbers["stored_bytes"] += sign * stored_size(size)
        self._entries[recipe_id] += sign
        self._bytes[recipe_id] += sign * size


def clear_accounting(txn: Transaction, tables: Tables) -> None:
    """Remove all counts of records."""
    for prefix in (*COUNTERS, "payload_bytes", "stored_bytes"):
        clear_numbers(txn, tables, prefix)
    txn.drop(tables.recipes, delete=False)


def miscounts(
    txn: Transaction, tables: Tables, tally: Tally, payload_bytes: int, is_clean: bool
) -> list[str]:
    """Return how the counts in the cache differ from a walk through all records, a line each.

    Args:
        txn: The transaction that reads.
        tables: Tables of the cache.
        tally: Sums over the records that could be read.
        payload_bytes: Size of all records.
        is_clean: Whether every record could be read; otherwise only the size is compared.
    """
    found = []
    counted = get_number(txn, tables, "payload_bytes")
    if counted != payload_bytes:
        found.append(f"accounting gives {counted} bytes, records have {payload_bytes}")
    if is_clean:
        found += tally.differences(txn, tables)
    members, rows = (txn.stat(table)["entries"] for table in (tables.members, tables.log))
    if members != 2 * rows:
        found.append(f"index of members must have two entries a record, got {members} for {rows}")
    return found
