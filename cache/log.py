"""The order of arrival: keys at positions from 1, with what the indexes need to let one go."""

import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple, Self

from cache.errors import CorruptRecordError
from cache.tables import Tables, Transaction, get_number

_POSITION = struct.Struct(">Q")
# key, recipe, source, arrived, size, served, ordinal, ordinal in the recipe
_ROW = struct.Struct(">32s16s16sdIIQQ")


class Row(NamedTuple):
    """What the log says of one record."""

    key: bytes
    recipe_id: bytes
    source_id: bytes
    arrived: float
    """Unix time in s, never before that of a lower position."""
    size: int
    """Bytes of the record."""
    served: int
    """How often it was served, as far as that was noted."""
    ordinal: int
    """Its place among all records, from 0 and without holes."""
    recipe_ordinal: int
    """The same among the records of its recipe."""

    def to_bytes(self) -> bytes:
        """Its encoding in the log."""
        return _ROW.pack(*self)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """The row that was encoded.

        Raises:
            CorruptRecordError: If it is none.
        """
        if len(data) != _ROW.size:
            raise CorruptRecordError(f"log must hold rows of {_ROW.size} bytes, got {len(data)}")
        return cls._make(_ROW.unpack(data))


def pack_position(position: int) -> bytes:
    """The key of that position."""
    return _POSITION.pack(position)


def unpack_position(raw: bytes) -> int:
    """The position of that key.

    Raises:
        CorruptRecordError: If it is none.
    """
    if len(raw) != _POSITION.size:
        raise CorruptRecordError(f"log position must have {_POSITION.size} bytes, got {len(raw)}")
    return int(_POSITION.unpack(raw)[0])


def last_position(txn: Transaction, tables: Tables) -> int:
    """The highest position ever given out, 0 before the first."""
    return get_number(txn, tables, "position")


def append(txn: Transaction, tables: Tables, position: int, row: Row) -> None:
    """Write a new highest position; the caller notes it as `position` in meta."""
    if not txn.put(_POSITION.pack(position), row.to_bytes(), append=True, db=tables.log):
        raise CorruptRecordError(f"log position must be new, got {position} again")


def write(txn: Transaction, tables: Tables, position: int, row: Row) -> None:
    """Put `row` in place of the one at that position."""
    txn.put(_POSITION.pack(position), row.to_bytes(), db=tables.log)


def row_at(txn: Transaction, tables: Tables, position: int) -> Row | None:
    """What is at that position, None where there is nothing (any more)."""
    raw = txn.get(_POSITION.pack(position), db=tables.log)
    return None if raw is None else Row.from_bytes(raw)


def last_row(txn: Transaction, tables: Tables) -> Row | None:
    """The row that arrived last, None in an empty log."""
    with txn.cursor(tables.log) as cursor:
        return Row.from_bytes(cursor.value()) if cursor.last() else None


def read_after(txn: Transaction, tables: Tables, after: int, limit: int) -> list[tuple[int, bytes]]:
    """At most `limit` positions above `after` with their keys, ascending."""
    found: list[tuple[int, bytes]] = []
    with txn.cursor(tables.log) as cursor:
        is_there = cursor.set_range(_POSITION.pack(after + 1))
        while is_there and len(found) < limit:
            key = Row.from_bytes(cursor.value()).key
            found.append((unpack_position(cursor.key()), key))
            is_there = cursor.next()
    return found


def walk(txn: Transaction, tables: Tables) -> Iterator[tuple[int, Row]]:
    """Every position with its row, ascending; those that cannot be read are left out."""
    with txn.cursor(tables.log) as cursor:
        for place, raw in cursor:
            with suppress(CorruptRecordError):
                yield unpack_position(place), Row.from_bytes(raw)


def arrivals_since(txn: Transaction, tables: Tables, moment: float) -> int:
    """How many positions were given out from Unix time `moment` on, looking at a few rows only.

    Counted from the first of them that is still there.
    """
    last = last_position(txn, tables)
    low, high = 1, last + 1  # the first row that arrived since is at one of these or behind
    with txn.cursor(tables.log) as cursor:
        while low < high:
            middle = (low + high) // 2
            is_there = cursor.set_range(_POSITION.pack(middle))
            if not is_there or Row.from_bytes(cursor.value()).arrived >= moment:
                high = middle
            else:
                low = unpack_position(cursor.key()) + 1
        return (
            last + 1 - unpack_position(cursor.key()) if cursor.set_range(pack_position(low)) else 0
        )
