"""All that follows from the records, written anew: for repair and for older schemas.

Whose LMDB it is: tables made once, recognised ever after, brought up from an older schema.
"""

import logging
import struct
from pathlib import Path

import lmdb

from cache.backend import claims
from cache.backend.index import Index, Row, row_at, unpack_position
from cache.backend.tables import (
    Tables,
    Tally,
    Transaction,
    clear_accounting,
    get_number,
    number_key,
    put_number,
    unpack_number,
)
from cache.errors import CacheError, CorruptRecordError
from cache.keys import Scalar, facts_of
from cache.record import Draft, glimpse, parse

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
    clear_accounting(txn, tables)
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
        last = unpack_position(cursor.key()) if cursor.last() else 0
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
        row = row_at(txn, tables, position)
    except CorruptRecordError:  # or of schema 1
        return None
    return (row.arrived, row.served) if row is not None and row.key == key else None


def _write_in_place(index: Index, rows: list[bytes], highest: int) -> list[Row]:
    """Write rows at their own positions, with times that never go back; those left over."""
    last, arrived, displaced = 0, 0.0, []
    for raw in rows:
        position = unpack_position(raw[: _POSITION.size])
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


MAGIC = b"online-aug cache"
SCHEMA_VERSION = 3
"""Of the tables; an older one is migrated by a writer, a newer one is refused."""

_NUMBER_BYTES = 8
_REBUILT_BELOW = 2
"""Schema 1 had no indexes; 3 differs from 2 by the records' checksum, which each record names."""
_log = logging.getLogger(__name__)


def create_tables(environment: lmdb.Environment, path: Path) -> Tables:
    """The tables of a writable environment, made if LMDB has nothing in it yet.

    An older schema is migrated, all of it in one transaction.

    Raises:
        CacheError: If it belongs to another program or a newer version; nothing was changed.
    """
    done = ""
    with environment.begin(write=True) as txn:
        is_new = txn.stat()["entries"] == 0
        version = SCHEMA_VERSION if is_new else _version(environment, txn, path)
        handles = (environment.open_db(name.encode(), txn=txn) for name in Tables._fields)
        tables = Tables(*handles)
        if is_new:
            txn.put(b"magic", MAGIC, db=tables.meta)
        elif version < SCHEMA_VERSION:
            done = f"cache {path} migrated from schema {version} to {SCHEMA_VERSION}"
            done += _rebuilt(txn, tables) if version < _REBUILT_BELOW else ""
        if is_new or done:
            put_number(txn, tables, "schema", SCHEMA_VERSION)
    if done:
        _log.warning(done)
    return tables


def open_tables(environment: lmdb.Environment, path: Path) -> Tables:
    """The tables of a read-only environment; takes no lock that a writer may hold.

    Raises:
        CacheError: If there are none, or they belong to another program, an older or a newer
            version.
    """
    with environment.begin() as txn:
        is_new = txn.stat()["entries"] == 0
    if is_new:
        raise CacheError(f"cache path must be a directory with a cache, got {path}")
    version = _version(environment, None, path)
    if version < SCHEMA_VERSION:
        raise CacheError(
            f"cache schema must be {SCHEMA_VERSION} to be read, got {version} at {path}; "
            "end older programs that use it, then migrate it with "
            f"python -m cache verify --repair {path}"
        )
    return Tables(*(environment.open_db(name.encode(), create=False) for name in Tables._fields))


def recognise(environment: lmdb.Environment, path: Path) -> None:
    """Look whose files they are without a lock; an LMDB without anything in it may be anybody's.

    Raises:
        CacheError: If they belong to another program or a newer version.
    """
    with environment.begin() as txn:
        is_new = txn.stat()["entries"] == 0
    if not is_new:
        _version(environment, None, path)


def _rebuilt(txn: Transaction, tables: Tables) -> str:
    kept, lost = rebuild(txn, tables)
    return f": {kept} records" + (f", {len(lost)} corrupt ones dropped" if lost else "")


def _version(environment: lmdb.Environment, txn: "Transaction | None", path: Path) -> int:
    foreign = CacheError(f"cache path must hold a cache, got {path} with another program's LMDB")
    try:
        meta = environment.open_db(b"meta", txn=txn, create=False)
    except lmdb.Error as error:
        raise foreign from error
    if txn is None:
        with environment.begin() as reading:
            magic, schema = _read_identity(reading, meta)
    else:
        magic, schema = _read_identity(txn, meta)
    if magic != MAGIC or schema is None or len(schema) != _NUMBER_BYTES:
        raise foreign
    version = unpack_number(schema)
    if not 1 <= version <= SCHEMA_VERSION:
        raise CacheError(
            f"cache schema must be at most {SCHEMA_VERSION}, got {version} at {path}; "
            "use the version of online-aug that made it, or another directory"
        )
    return version


def _read_identity(txn: Transaction, meta: "lmdb._Database") -> tuple[bytes | None, bytes | None]:
    return txn.get(b"magic", db=meta), txn.get(number_key("schema"), db=meta)
