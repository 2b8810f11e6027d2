"""The log, in order of arrival, and the indexes that lead into it.

Positions in the log start at 1. The indexes find records by recipe, by source, by how often they
were served, and at random.
"""

import struct
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import accumulate
from typing import Any, NamedTuple, Self

import numpy as np

from cache.backend.tables import Tables, Transaction, entries_of, get_number, list_recipes
from cache.errors import CorruptRecordError
from cache.keys import ID_BYTES, KEY_BYTES, NO_SOURCE, Scalar, canonical_bytes

EVERYTHING = b"\xff" * ID_BYTES
"""Recipe identifier in `members` for all records. It is the last one, so its pages fill up."""

_POSITION = struct.Struct(">Q")
# key, recipe, source, arrived, size, served, ordinal, ordinal in the recipe
_ROW = struct.Struct(">32s16s16sdIIQQ")
_ORDINAL = struct.Struct(">Q")
_TIMES = struct.Struct(">I")
_MOST_TIMES = 2**32 - 1


class Row(NamedTuple):
    """The row of one record in the log."""

    key: bytes
    recipe_id: bytes
    source_id: bytes
    arrived: float
    """Unix time in s, never before that of a lower position."""
    size: int
    """Bytes of the record."""
    served: int
    """Number of times it was served, as far as that was noted."""
    ordinal: int
    """Its number among all records, from 0 and without holes."""
    recipe_ordinal: int
    """Its number among the records of its recipe."""

    def to_bytes(self) -> bytes:
        """Encode the row."""
        return _ROW.pack(*self)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Decode a row.

        Raises:
            CorruptRecordError: If `data` does not have the size of a row.
        """
        if len(data) != _ROW.size:
            raise CorruptRecordError(f"log must hold rows of {_ROW.size} bytes, got {len(data)}")
        return cls._make(_ROW.unpack(data))


def pack_position(position: int) -> bytes:
    """Encode a position as the key of the log."""
    return _POSITION.pack(position)


def unpack_position(raw: bytes) -> int:
    """Decode a position.

    Raises:
        CorruptRecordError: If it does not have 8 bytes.
    """
    if len(raw) != _POSITION.size:
        raise CorruptRecordError(f"log position must have {_POSITION.size} bytes, got {len(raw)}")
    return int(_POSITION.unpack(raw)[0])


def last_position(txn: Transaction, tables: Tables) -> int:
    """Return the highest position ever given out, 0 before the first."""
    return get_number(txn, tables, "position")


def row_at(txn: Transaction, tables: Tables, position: int) -> Row | None:
    """Return the row at a position, or None if there is none, or no longer one."""
    raw = txn.get(_POSITION.pack(position), db=tables.log)
    return None if raw is None else Row.from_bytes(raw)


def last_row(txn: Transaction, tables: Tables) -> Row | None:
    """Return the row that arrived last, or None if the log is empty."""
    with txn.cursor(tables.log) as cursor:
        return Row.from_bytes(cursor.value()) if cursor.last() else None


def read_log_after(
    txn: Transaction, tables: Tables, after: int, limit: int
) -> list[tuple[int, bytes]]:
    """Return at most `limit` positions above `after` with their keys, ascending."""
    found: list[tuple[int, bytes]] = []
    with txn.cursor(tables.log) as cursor:
        is_there = cursor.set_range(_POSITION.pack(after + 1))
        while is_there and len(found) < limit:
            key = Row.from_bytes(cursor.value()).key
            found.append((unpack_position(cursor.key()), key))
            is_there = cursor.next()
    return found


def walk_log(txn: Transaction, tables: Tables) -> Iterator[tuple[int, Row]]:
    """Yield every position with its row, ascending, without rows that cannot be read."""
    with txn.cursor(tables.log) as cursor:
        for place, raw in cursor:
            with suppress(CorruptRecordError):
                yield unpack_position(place), Row.from_bytes(raw)


def arrivals_since(txn: Transaction, tables: Tables, moment: float) -> int:
    """Return how many positions were given out since Unix time `moment`.

    It reads a few rows only, and counts from the first of these positions that still has a row.
    """
    last = last_position(txn, tables)
    low, high = 1, last + 1  # the first row that arrived since then is at or behind one of these
    with txn.cursor(tables.log) as cursor:
        while low < high:
            middle = (low + high) // 2
            is_there = cursor.set_range(_POSITION.pack(middle))
            if not is_there or Row.from_bytes(cursor.value()).arrived >= moment:
                high = middle
            else:
                low = unpack_position(cursor.key()) + 1
        is_there = cursor.set_range(_POSITION.pack(low))
        return last + 1 - unpack_position(cursor.key()) if is_there else 0


class Index:
    """Adds rows to the log and all indexes, and removes them, within one transaction.

    The members of each recipe, and of everything, are numbered from 0 without holes: the last one
    takes the number of one that leaves. So drawing a number draws a record.
    """

    def __init__(self, txn: Transaction, tables: Tables) -> None:
        """Work on `tables`. The counts of recipes must not change before the work is done."""
        self._txn, self._tables = txn, tables
        self._counts = {EVERYTHING: int(txn.stat(tables.log)["entries"])}

    def add(self, position: int, row: Row) -> None:
        """Write a row at a new highest position; its ordinals are set here.

        The caller writes `position` to meta.
        """
        place = pack_position(position)
        row = row._replace(
            ordinal=self._join(EVERYTHING, place + row.key),
            recipe_ordinal=self._join(row.recipe_id, place),
        )
        if not self._txn.put(place, row.to_bytes(), append=True, db=self._tables.log):
            raise CorruptRecordError(f"log position must be new, got {position} again")
        if row.source_id != NO_SOURCE:
            self._txn.put(row.source_id + place, b"", db=self._tables.by_source)
        if row.served:
            self._txn.put(_TIMES.pack(row.served) + place, b"", db=self._tables.served)

    def remove(self, position: int) -> Row:
        """Remove the row at `position` and return it.

        Raises:
            CorruptRecordError: If there is none, or the indexes do not fit it.
        """
        row, place = self._row(position), pack_position(position)
        self._leave(EVERYTHING, row.ordinal)
        self._leave(row.recipe_id, row.recipe_ordinal)
        self._txn.delete(row.source_id + place, db=self._tables.by_source)
        self._txn.delete(_TIMES.pack(row.served) + place, db=self._tables.served)
        self._txn.delete(place, db=self._tables.log)
        return row

    def add_served(self, position: int, times: int) -> None:
        """Note that the record at `position` was served `times` more."""
        row, place = self._row(position), pack_position(position)
        self._txn.delete(_TIMES.pack(row.served) + place, db=self._tables.served)
        row = row._replace(served=min(row.served + times, _MOST_TIMES))
        self._txn.put(_TIMES.pack(row.served) + place, b"", db=self._tables.served)
        self._txn.put(place, row.to_bytes(), db=self._tables.log)

    def _row(self, position: int) -> Row:
        row = row_at(self._txn, self._tables, position)
        if row is None:
            raise _damaged(f"the log has no position {position}")
        return row

    def _count(self, group: bytes) -> int:
        if group not in self._counts:
            self._counts[group] = entries_of(self._txn, self._tables, group)
        return self._counts[group]

    def _join(self, group: bytes, entry: bytes) -> int:
        ordinal = self._count(group)
        name = group + _ORDINAL.pack(ordinal)
        self._txn.put(name, entry, append=group == EVERYTHING, db=self._tables.members)
        self._counts[group] = ordinal + 1
        return ordinal

    def _leave(self, group: bytes, ordinal: int) -> None:
        last = self._counts[group] = self._count(group) - 1
        if ordinal != last:
            entry = _member(self._txn, self._tables, group, last)
            place = entry[: _POSITION.size]
            self._txn.put(group + _ORDINAL.pack(ordinal), entry, db=self._tables.members)
            row, is_all = self._row(unpack_position(place)), group == EVERYTHING
            row = row._replace(ordinal=ordinal) if is_all else row._replace(recipe_ordinal=ordinal)
            self._txn.put(place, row.to_bytes(), db=self._tables.log)
        self._txn.delete(group + _ORDINAL.pack(last), db=self._tables.members)


def sample(
    txn: Transaction,
    tables: Tables,
    rng: np.random.Generator,
    count: int,
    recipe: Mapping[str, Scalar] | None,
) -> list[bytes]:
    """Draw `count` keys with replacement, uniform over all records or those that match."""
    groups = _matching(txn, tables, recipe)
    ends = list(accumulate(entries for _, entries in groups))
    if not ends or not ends[-1]:
        return []
    keys = []
    for drawn in rng.integers(ends[-1], size=count).tolist():
        which = bisect_right(ends, drawn)
        ordinal = drawn - (ends[which - 1] if which else 0)
        keys.append(_key_of_member(txn, tables, groups[which][0], ordinal))
    return keys


def position_of_member(txn: Transaction, tables: Tables, recipe_id: bytes, ordinal: int) -> int:
    """Return the position of one member of a recipe.

    Raises:
        CorruptRecordError: If it has no member of that number.
    """
    return unpack_position(_member(txn, tables, recipe_id, ordinal))


def positions_of_recipe(
    txn: Transaction, tables: Tables, recipe: Mapping[str, Scalar] | None, after: int = 0
) -> list[int]:
    """Return the positions above `after` of all records, or of those that match, ascending."""
    if after or recipe is None:
        return _later_positions(txn, tables, recipe, after)
    groups = [group for group, _ in _matching(txn, tables, recipe)]
    places = (place for group in groups for _, place in _items(txn, tables.members, group))
    return sorted(unpack_position(place[: _POSITION.size]) for place in places)


def _later_positions(
    txn: Transaction, tables: Tables, recipe: Mapping[str, Scalar] | None, after: int
) -> list[int]:
    groups = {name for name, _ in _matching(txn, tables, recipe)}
    with txn.cursor(tables.log) as cursor:  # unlike the lists of recipes in order of arrival
        rows = cursor if cursor.set_range(_POSITION.pack(after + 1)) else ()
        return [
            unpack_position(place)
            for place, raw in rows
            if recipe is None or Row.from_bytes(raw).recipe_id in groups
        ]


def positions_of_source(txn: Transaction, tables: Tables, source_id: bytes) -> list[int]:
    """Return the positions of the records made from a source, ascending."""
    found = _items(txn, tables.by_source, source_id)
    return [unpack_position(name[ID_BYTES:]) for name, _ in found]


def _items(txn: Transaction, table: Any, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
    with txn.cursor(table) as cursor:
        is_there = cursor.set_range(prefix)
        while is_there and cursor.key().startswith(prefix):
            yield cursor.key(), cursor.value()
            is_there = cursor.next()


def positions_served(txn: Transaction, tables: Tables, times: int) -> Iterator[int]:
    """Yield positions of records served at least `times`, by how often, then by age."""
    with txn.cursor(tables.served) as cursor:
        is_there = cursor.set_range(_TIMES.pack(min(times, _MOST_TIMES)))
        while is_there:
            yield position_served(cursor.key())
            is_there = cursor.next()


def position_served(name: bytes) -> int:
    """Return the position in a key of the table `served`."""
    return unpack_position(name[_TIMES.size :])


def missing(txn: Transaction, tables: Tables, position: int, row: Row) -> list[str]:
    """Return the indexes that do not lead to the row at `position`, a line each."""
    place = pack_position(position)
    members, everything = tables.members, EVERYTHING + _ORDINAL.pack(row.ordinal)
    names = []
    if txn.get(everything, db=members) != place + row.key:
        names.append("record is not among all members")
    if txn.get(row.recipe_id + _ORDINAL.pack(row.recipe_ordinal), db=members) != place:
        names.append("record is not among the members of its recipe")
    if row.source_id != NO_SOURCE and txn.get(row.source_id + place, db=tables.by_source) is None:
        names.append("record is not in the index of sources")
    if row.served and txn.get(_TIMES.pack(row.served) + place, db=tables.served) is None:
        names.append("record is not in the index of what was served")
    return names


def _matching(
    txn: Transaction, tables: Tables, recipe: Mapping[str, Scalar] | None
) -> list[tuple[bytes, int]]:
    if recipe is None:
        return [(EVERYTHING, int(txn.stat(tables.log)["entries"]))]
    wanted = _encoded(recipe)
    known = list_recipes(txn, tables)
    return [(found.id, found.entries) for found in known if wanted <= _encoded(found.fields)]


def _encoded(fields: Mapping[str, Scalar]) -> set[bytes]:
    # Compared as bytes, since 1, 1.0 and True are equal in Python.
    return {canonical_bytes({name: value}) for name, value in fields.items()}


def _key_of_member(txn: Transaction, tables: Tables, group: bytes, ordinal: int) -> bytes:
    raw = _member(txn, tables, group, ordinal)
    if group == EVERYTHING:  # has the key, which saves reading the log
        return raw[_POSITION.size :]
    row = row_at(txn, tables, unpack_position(raw))
    if row is None:
        raise _damaged(f"member {ordinal} of {group.hex()} is not in the log")
    return row.key


def _member(txn: Transaction, tables: Tables, group: bytes, ordinal: int) -> bytes:
    raw = txn.get(group + _ORDINAL.pack(ordinal), db=tables.members)
    size = _POSITION.size + (KEY_BYTES if group == EVERYTHING else 0)
    if raw is None or len(raw) != size:
        raise _damaged(f"{group.hex()} has no member {ordinal}")
    return raw


def _damaged(what: str) -> CorruptRecordError:
    return CorruptRecordError(f"cache index is damaged: {what}; verify --repair writes it anew")
