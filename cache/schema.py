"""Whose LMDB it is: tables made once, recognised ever after, brought up from an older schema."""

import logging
from pathlib import Path

import lmdb

from cache.errors import CacheError
from cache.rebuild import rebuild
from cache.tables import Tables, Transaction, number_key, put_number, unpack_number

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
