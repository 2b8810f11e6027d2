"""All that follows from the records, written anew: for repair and for older schemas."""

import struct

from cache import accounting, claims, log
from cache.accounting import Tally
from cache.errors import CorruptRecordError
from cache.facts import facts_of
from cache.index import Index
from cache.key import Scalar
from cache.log import Row
from cache.record import Draft, glimpse, parse
from cache.tables import Tables, Transaction, get_number, put_number

_POSITION = struct.Struct(">Q")


def rebuild(txn: Transaction, tables: Tables) -> tuple[int, list[bytes]]:
    """Write log, indexes and accounting anew from the records; how many, and what was dropped.

    Dropped are records whose request cannot be read. When a record arrived and how often it was
    served is taken from the log where that can still be read.
    """
    highest = _highest_position(txn, tables)
    rows, lost, tally = _rows(txn, tables)
    for key in lost:
        txn.delete(key, db=tables.records)
    for table in (tables.log, tables.members, tables.by_source, tables.served):
        txn.drop(table, delete=False)
    accounting.clear(txn, tables)
    index = Index(txn, tables)
    displaced = _write_in_place(index, rows, highest)
    for row in displaced:  # of two records that name one position, one moves behind all others
        facts = facts_of(_request(txn, tables, row.key))
        tally.remove(row.recipe_id, row.size, facts)
        size = _move(txn, tables, row.key, highest + 1)
        if size is None:
            txn.delete(row.key, db=tables.records)
            lost.append(row.key)
            continue
        highest += 1
        index.add(highest, row._replace(size=size))
        tally.add(facts, size)
    put_number(txn, tables, "position", highest)
    tally.write(txn, tables)
    claims.recount(txn, tables)
    return int(txn.stat(tables.records)["entries"]), lost


def _highest_position(txn: Transaction, tables: Tables) -> int:
    with txn.cursor(tables.log) as cursor:
        # Schema 1 had no counter of positions.
        last = log.unpack_position(cursor.key()) if cursor.last() else 0
    return max(last, get_number(txn, tables, "position"))


def _rows(txn: Transaction, tables: Tables) -> tuple[list[bytes], list[bytes], Tally]:
    """Position and row of every record as one string of bytes each, in the order of the log."""
    rows, lost, tally = [], [], Tally()
    with txn.cursor(tables.records) as cursor:
        for key, value in cursor:
            try:
                seen = glimpse(key, value)
            except CorruptRecordError:
                lost.append(key)
                continue
            facts = facts_of(seen.request)
            arrived, served = _history(txn, tables, seen.position, key) or (seen.created, 0)
            size = len(value)
            row = Row(key, facts.recipe_id, facts.source_id, arrived, size, served, 0, 0)
            rows.append(_POSITION.pack(seen.position) + row.to_bytes())
            tally.add(facts, size)
    return sorted(rows), lost, tally


def _history(
    txn: Transaction, tables: Tables, position: int, key: bytes
) -> tuple[float, int] | None:
    try:
        row = log.row_at(txn, tables, position)
    except CorruptRecordError:  # or of schema 1
        return None
    return (row.arrived, row.served) if row is not None and row.key == key else None


def _write_in_place(index: Index, rows: list[bytes], highest: int) -> list[Row]:
    """Write rows at their own positions, with times that never go back; those left over."""
    last, arrived, displaced = 0, 0.0, []
    for raw in rows:
        position = log.unpack_position(raw[: _POSITION.size])
        row = Row.from_bytes(raw[_POSITION.size :])
        arrived = max(arrived, row.arrived)
        row = row._replace(arrived=arrived)
        if last < position <= highest:
            index.add(position, row)
            last = position
        else:
            displaced.append(row)
    return [row._replace(arrived=arrived) for row in displaced]


def _move(txn: Transaction, tables: Tables, key: bytes, position: int) -> int | None:
    """Seal a record anew for another position; its size, None where it cannot be read."""
    try:
        draft = Draft.copy(parse(key, txn.get(key, db=tables.records) or b""))
    except CorruptRecordError:
        return None
    txn.put(key, draft.seal(position), db=tables.records)
    return draft.size


def _request(txn: Transaction, tables: Tables, key: bytes) -> dict[str, Scalar]:
    return glimpse(key, txn.get(key, db=tables.records) or b"").request
