"""The sub-databases of a cache: made once, recognised ever after, and the numbers kept in them."""

import struct
from pathlib import Path
from typing import NamedTuple, TypeAlias

import lmdb

from cache.errors import CacheError
from cache.record import SCHEMA_VERSION

Transaction: TypeAlias = "lmdb.Transaction[bytes]"

MAGIC = b"online-aug cache"
_NUMBER = struct.Struct(">q")
_MAX_NAME_BYTES = 400
"""Of a counter; LMDB's keys end at 511 bytes."""


class Tables(NamedTuple):
    """Handles of the sub-databases, named as on disk."""

    records: "lmdb._Database"
    """key -> record."""
    log: "lmdb._Database"
    """position, 8 bytes big-endian, from 1 -> key, in the order of arrival."""
    rejected: "lmdb._Database"
    """key -> reason and request."""
    claims: "lmdb._Database"
    """key -> owner and lease."""
    meta: "lmdb._Database"
    """Magic, schema version and counters."""


def create_tables(environment: lmdb.Environment, path: Path) -> Tables:
    """The tables of a writable environment, made if LMDB has nothing in it yet.

    Raises:
        CacheError: If it belongs to another program or a newer version; nothing was changed.
    """
    with environment.begin(write=True) as txn:
        is_new = txn.stat()["entries"] == 0
        if not is_new:
            _recognise(environment, txn, path)
        handles = (environment.open_db(name.encode(), txn=txn) for name in Tables._fields)
        tables = Tables(*handles)
        if is_new:
            txn.put(b"magic", MAGIC, db=tables.meta)
            put_number(txn, tables, "schema", SCHEMA_VERSION)
    return tables


def open_tables(environment: lmdb.Environment, path: Path) -> Tables:
    """The tables of a read-only environment; takes no lock that a writer may hold.

    Raises:
        CacheError: If there are none, or they belong to another program or a newer version.
    """
    with environment.begin() as txn:
        is_new = txn.stat()["entries"] == 0
    if is_new:
        raise CacheError(f"cache path must be a directory with a cache, got {path}")
    _recognise(environment, None, path)
    return Tables(*(environment.open_db(name.encode(), create=False) for name in Tables._fields))


def get_number(txn: Transaction, tables: Tables, name: str) -> int:
    """A number kept in meta, 0 where it was never set."""
    raw = txn.get(_number_key(name), db=tables.meta)
    return 0 if raw is None else int(_NUMBER.unpack(raw)[0])


def put_number(txn: Transaction, tables: Tables, name: str, value: int) -> None:
    """Set a number in meta; it becomes visible with the rest of the transaction."""
    txn.put(_number_key(name), _NUMBER.pack(value), db=tables.meta)


def add_number(txn: Transaction, tables: Tables, name: str, change: int) -> None:
    """Add to a number in meta."""
    put_number(txn, tables, name, get_number(txn, tables, name) + change)


def numbers(txn: Transaction, tables: Tables, prefix: str) -> dict[str, int]:
    """The numbers other than 0 whose names start with `prefix`, without it."""
    start = _number_key(prefix)
    found: dict[str, int] = {}
    with txn.cursor(tables.meta) as cursor:
        if not cursor.set_range(start):
            return found
        for key, raw in cursor:
            if not key.startswith(start):
                break
            found[key[len(start) :].decode(errors="replace")] = _NUMBER.unpack(raw)[0]
    return {name: value for name, value in found.items() if value}


def _number_key(name: str) -> bytes:
    return b"n:" + name.encode(errors="replace")[:_MAX_NAME_BYTES]


def _recognise(environment: lmdb.Environment, txn: "Transaction | None", path: Path) -> None:
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
    if magic != MAGIC or schema is None or len(schema) != _NUMBER.size:
        raise foreign
    (version,) = _NUMBER.unpack(schema)
    if version != SCHEMA_VERSION:
        raise CacheError(
            f"cache schema must be {SCHEMA_VERSION}, got {version} at {path}; "
            "use the version of online-aug that made it, or another directory"
        )


def _read_identity(txn: Transaction, meta: "lmdb._Database") -> tuple[bytes | None, bytes | None]:
    return txn.get(b"magic", db=meta), txn.get(_number_key("schema"), db=meta)
