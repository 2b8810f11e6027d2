"""Opening the LMDB environment of a directory, or one line that says why it cannot be opened.

LMDB follows damaged pages into a crash or a hang. So a note beside the data file says which file
was last known to be sound; any other one, such as a copy, is first examined by a child process.
"""

import errno
import fcntl
import os
import resource
import struct
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

import lmdb

from cache.backend.directory import (
    DATA,
    LOCK,
    NOTE,
    cache_exists,
    check_local,
    check_not_compacting,
    check_readable,
    identity,
    make_writable,
)
from cache.backend.tables import Tables, Transaction, number_key, put_number, unpack_number
from cache.errors import CacheError, CacheFullError
from cache.text import byte_size

MAP_BYTES = 2**40
"""Address space, not disk. The same in every process, so that none meets a map that grew."""
MAX_READERS = 2048
MAGIC = b"online-aug cache"
SCHEMA_VERSION = 4
"""Version of the tables. A cache of any other version is refused."""

_TRIES = 3
_NUMBER_BYTES = 8
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}  # EIO: LMDB's word for a short write
_DURABLE = "-"
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_NOT_LMDB = 3
_FLOCK = struct.Struct("hhqqi")

# Reads bytes only: nothing that it finds can crash it. A child process keeps this one responsive
# and is the only one to pay for what a forged file makes it allocate.
_EXAMINE = f"""
import sys
from lmdb.verify import VerifyError, verify
try:
    print(*verify(sys.argv[1], subdir=False), sep="\\n", end="")
except VerifyError as error:
    print(error, end="")
    sys.exit({_NOT_LMDB})
"""


def open_cache(path: Path, *, writable: bool, sync: bool) -> tuple[lmdb.Environment, Tables]:
    """Open the cache at `path`; create it if it is missing and `writable`.

    Raises:
        CacheError: If the path is not a cache and cannot become one, or is being compacted.
    """
    check_local(path)
    if writable:
        make_writable(path)
    else:
        check_readable(path)
    is_to_note = check_sound(path)
    if cache_exists(path) and not (path / LOCK).exists():
        probe(path)
    handle = _open_current(path, writable, sync)
    try:
        handle.reader_check()
        tables = (create_tables if writable else open_tables)(handle, path)
    except BaseException:
        handle.close()
        raise
    if is_to_note:
        note_sound(path)
    return handle, tables


def check_sound(path: Path, *, trusts_note: bool = True) -> bool:
    """Examine the data file unless it is known to be sound; return whether that is to be noted.

    If the note vouches for the file this takes two small reads. A file that another process has
    open is trusted, for it changes while it would be examined.

    Args:
        path: Directory of the cache, which this process must not have open.
        trusts_note: Whether a file that the note vouches for is not examined.

    Raises:
        CacheError: If its pages are damaged, it is not a file of LMDB's, or it cannot be examined.
    """
    while True:
        before = fingerprint(path)
        if before is None:
            return True
        if (trusts_note and _is_noted(path, before)) or is_in_use(path):
            return False
        problem = _examine(path)
        if problem is None:
            return True
        if fingerprint(path) == before and not is_in_use(path):
            raise problem


def fingerprint(path: Path) -> str | None:
    """Return a text that changes whenever the data file does, or None if there is no file."""
    try:
        found = (path / DATA).stat()
    except OSError:
        return None
    return f"{found.st_ino} {found.st_size} {found.st_mtime_ns}" if found.st_size else None


def _is_noted(path: Path, found: str) -> bool:
    try:
        note = (path / NOTE).read_text(errors="replace")
    except OSError:
        return False
    return note in (f"{found} {_DURABLE}\n", f"{found} {_boot()}\n")


def note_sound(path: Path, *, durable: bool = False) -> None:
    """Note that the data file as it is now is sound.

    Args:
        path: Directory of the cache.
        durable: Whether the file is on the disk. If not, the note ends with this boot.
    """
    found = fingerprint(path)
    with suppress(OSError):  # a directory that cannot be written is examined again next time
        (path / NOTE).write_text(f"{found} {_DURABLE if durable else _boot()}\n")


@cache
def _boot() -> str:
    try:
        return _BOOT.read_text().strip()
    except OSError:
        return "unknown"


def is_in_use(path: Path) -> bool:
    """Return whether another process has the cache open: each holds a lock on the first byte.

    Not to be called while this process has it open: closing any descriptor of the lock file would
    give up its own lock.
    """
    try:
        lock = os.open(path / LOCK, os.O_RDWR)
    except OSError:
        return False
    try:  # only asks: a lock of ours, however short, would mislead a process that is opening it
        asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0)
        (kind, *_) = _FLOCK.unpack(fcntl.fcntl(lock, fcntl.F_GETLK, asked))
    finally:
        os.close(lock)
    return bool(kind != fcntl.F_UNLCK)


def _examine(path: Path) -> CacheError | None:
    command = [sys.executable, "-P", "-c", _EXAMINE, str(path / DATA)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    except OSError as error:
        return CacheError(f"cache {path} cannot be examined for damage: {error.strerror}")
    lines = (done.stdout or done.stderr or f"status {done.returncode}").splitlines()
    if done.returncode == _NOT_LMDB:
        return CacheError(
            f"cache path must hold a cache, got {path} with another file ({lines[0]})"
        )
    if done.returncode:
        return CacheError(f"cache {path} cannot be examined for damage: {lines[-1]}")
    if not done.stdout:
        return None
    return CacheError(
        f"cache {path} is damaged: {lines[0]} ({len(lines)} such); "
        "put back a copy of data.mdb, or delete the cache: runs generate its images again"
    )


def probe(path: Path) -> None:
    """Check whose files these are before LMDB leaves a lock file in a foreign directory.

    Raises:
        CacheError: If they belong to another program or another version.
    """
    handle = open_handle(path, readonly=True, lock=False)
    try:
        if not _is_empty(handle):
            _check_schema(handle, None, path)
    finally:
        handle.close()


def _open_current(path: Path, writable: bool, sync: bool) -> lmdb.Environment:
    for _ in range(_TRIES):
        check_not_compacting(path)
        before = identity(path)
        handle = open_handle(path, readonly=not writable, sync=sync)
        if before in (None, identity(path)):  # else `compact` has just replaced the file
            return handle
        handle.close()
    raise CacheError(f"cache {path} was replaced while it was opened; try again")


def open_handle(
    path: Path, *, readonly: bool, lock: bool = True, sync: bool = True
) -> lmdb.Environment:
    """Open LMDB on a directory with the settings that every process must share.

    Only `sync` may differ: it says whether a commit of this process waits for the disk.
    """
    return lmdb.Environment(
        str(path),
        map_size=MAP_BYTES,
        subdir=True,
        readonly=readonly,
        create=not readonly,
        mode=0o666,
        metasync=True,
        sync=sync,
        writemap=False,
        max_readers=MAX_READERS,
        max_dbs=len(Tables._fields) + 8,
        lock=lock,
        lib_version=0,
    )


def create_tables(environment: lmdb.Environment, path: Path) -> Tables:
    """Return the tables of a writable environment; create them if it is empty.

    Raises:
        CacheError: If it belongs to another program or another version; nothing was changed.
    """
    with environment.begin(write=True) as txn:
        is_new = txn.stat()["entries"] == 0
        if not is_new:
            _check_schema(environment, txn, path)
        handles = (environment.open_db(name.encode(), txn=txn) for name in Tables._fields)
        tables = Tables(*handles)
        if is_new:
            txn.put(b"magic", MAGIC, db=tables.meta)
            put_number(txn, tables, "schema", SCHEMA_VERSION)
    return tables


def open_tables(environment: lmdb.Environment, path: Path) -> Tables:
    """Return the tables of a read-only environment, without a lock that a writer may hold.

    Raises:
        CacheError: If there are no tables, or they belong to another program or another version.
    """
    if _is_empty(environment):
        raise CacheError(f"cache path must be a directory with a cache, got {path}")
    _check_schema(environment, None, path)
    return Tables(*(environment.open_db(name.encode(), create=False) for name in Tables._fields))


def _is_empty(environment: lmdb.Environment) -> bool:
    with environment.begin() as txn:
        return int(txn.stat()["entries"]) == 0


def _check_schema(environment: lmdb.Environment, txn: "Transaction | None", path: Path) -> None:
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
    if version != SCHEMA_VERSION:
        raise CacheError(
            f"cache schema must be {SCHEMA_VERSION}, got {version} at {path}; name a new "
            "directory, or export it with the version of online-aug that wrote it"
        )


def _read_identity(txn: Transaction, meta: "lmdb._Database") -> tuple[bytes | None, bytes | None]:
    return txn.get(b"magic", db=meta), txn.get(number_key("schema"), db=meta)


def begin(handle: lmdb.Environment, write: bool, buffers: bool = False) -> Transaction:
    """Begin a transaction; if no reader slot is free, clear those of dead readers first."""
    start: Callable[..., Transaction] = handle.begin
    try:
        return start(None, None, write, buffers)
    except lmdb.ReadersFullError:
        handle.reader_check()
        return start(None, None, write, buffers)


def worded(path: Path, error: lmdb.Error) -> CacheError:
    """Return the error of ours that says what an error of LMDB's means and what to do."""
    text = str(error).replace("\n", " ")
    if isinstance(error, lmdb.MapFullError) or getattr(error, "code", 0) in _FULL:
        return CacheFullError(
            f"cache {path} cannot grow: the disk is full, or a quota or file size limit was met "
            f"({text}); free space or use another disk"
        )
    if isinstance(error, lmdb.MemoryError):
        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        said = "" if limit == resource.RLIM_INFINITY else f", here {byte_size(limit)}"
        return CacheError(
            f"cache {path} needs {byte_size(MAP_BYTES)} of address space, which takes neither "
            f"memory nor disk, but a limit is lower (ulimit -v{said}): ulimit -v unlimited"
        )
    if isinstance(error, lmdb.InvalidError | lmdb.VersionMismatchError):
        return CacheError(f"cache path must hold a cache, got {path} with another file ({text})")
    return CacheError(f"cache {path} cannot be used: {text}")
