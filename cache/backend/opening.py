"""Whether LMDB may be let at a data file: it follows damaged pages into a crash or a hang.

A note beside the data file says which file was last known to be sound. One that is not noted, such
as a copy or one that another program wrote to, is examined by a child process before it is opened.

LMDB's own object: the settings it is opened with and the errors it raises.

From a directory to LMDB's handle and the tables of a cache, or one line why not.
"""

import errno
import fcntl
import os
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
from cache.backend.schema import create_tables, open_tables, recognise
from cache.backend.tables import Tables, Transaction
from cache.errors import CacheError, CacheFullError

_DURABLE = "-"
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_NO_LMDB = 3
_FLOCK = struct.Struct("hhqqi")

# Reads bytes only: what it finds cannot crash it. A child of its own keeps this process responsive
# and is the only one to pay for what a forged file makes it allocate.
_EXAMINE = f"""
import sys
from lmdb.verify import VerifyError, verify
try:
    print(*verify(sys.argv[1], subdir=False), sep="\\n", end="")
except VerifyError as error:
    print(error, end="")
    sys.exit({_NO_LMDB})
"""


def check_sound(path: Path, *, trusts_note: bool = True) -> bool:
    """Whether the data file is to be noted as sound once it is known to be a cache's.

    Takes two small reads where it is noted. One that another process has open is trusted, for it
    changes while it would be looked at.

    Args:
        path: Directory of the cache, which this process has not open.
        trusts_note: Whether one that is noted is not looked at.

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


def note_sound(path: Path, *, durable: bool = False) -> None:
    """Note that the data file as it stands is sound, for whoever opens it next.

    Args:
        path: Directory of the cache.
        durable: Whether it stays so when power fails; otherwise the note ends with this boot.
    """
    found = fingerprint(path)
    with suppress(OSError):  # a directory that cannot be written is examined again next time
        (path / NOTE).write_text(f"{found} {_DURABLE if durable else _boot()}\n")


def fingerprint(path: Path) -> str | None:
    """What changes whenever the data file does; None where there is none yet."""
    try:
        found = (path / DATA).stat()
    except OSError:
        return None
    return f"{found.st_ino} {found.st_size} {found.st_mtime_ns}" if found.st_size else None


def is_in_use(path: Path) -> bool:
    """Whether another process has the cache open: every one holds a lock on the first byte.

    Not to be asked while this process has it open: closing any file gives up its own lock on it.
    """
    try:
        lock = os.open(path / LOCK, os.O_RDWR)
    except OSError:
        return False
    try:  # asks only: a lock of ours, however short, would mislead one that is just opening it
        asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0)
        (kind, *_) = _FLOCK.unpack(fcntl.fcntl(lock, fcntl.F_GETLK, asked))
    finally:
        os.close(lock)
    return bool(kind != fcntl.F_UNLCK)


def _is_noted(path: Path, found: str) -> bool:
    try:
        note = (path / NOTE).read_text(errors="replace")
    except OSError:
        return False
    return note in (f"{found} {_DURABLE}\n", f"{found} {_boot()}\n")


def _examine(path: Path) -> CacheError | None:
    command = [sys.executable, "-P", "-c", _EXAMINE, str(path / DATA)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    except OSError as error:
        return CacheError(f"cache {path} cannot be examined for damage: {error.strerror}")
    lines = (done.stdout or done.stderr or f"status {done.returncode}").splitlines()
    if done.returncode == _NO_LMDB:
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


@cache
def _boot() -> str:
    try:
        return _BOOT.read_text().strip()
    except OSError:
        return "unknown"


MAP_BYTES = 2**40
"""Address space, not disk: the same everywhere, so that no process meets a map that grew."""
MAX_READERS = 2048

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}  # EIO: LMDB's word for a short write


def open_handle(
    path: Path, *, readonly: bool, lock: bool = True, sync: bool = True
) -> lmdb.Environment:
    """LMDB's environment on that directory, with the settings every process must share.

    `sync` alone may differ: it says whether a commit of this process waits for the disk.
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


def probe(path: Path) -> None:
    """Look into files that nobody has open, before LMDB leaves a lock file in a foreign directory.

    Raises:
        CacheError: If they belong to another program or a newer version.
    """
    handle = open_handle(path, readonly=True, lock=False)
    try:
        recognise(handle, path)
    finally:
        handle.close()


def begin(handle: lmdb.Environment, write: bool, buffers: bool = False) -> Transaction:
    """A new transaction, after clearing the slots of dead readers if there is no free one."""
    start: Callable[..., Transaction] = handle.begin
    try:
        return start(None, None, write, buffers)
    except lmdb.ReadersFullError:
        handle.reader_check()
        return start(None, None, write, buffers)


def worded(path: Path, error: lmdb.Error) -> CacheError:
    """The error of ours that says what an error of LMDB's means and what to do."""
    text = str(error).replace("\n", " ")
    if isinstance(error, lmdb.MapFullError) or getattr(error, "code", 0) in _FULL:
        return CacheFullError(
            f"cache {path} cannot grow: the disk is full, or a quota or file size limit was met "
            f"({text}); free space or use another disk"
        )
    if isinstance(error, lmdb.InvalidError | lmdb.VersionMismatchError):
        return CacheError(f"cache path must hold a cache, got {path} with another file ({text})")
    return CacheError(f"cache {path} cannot be used: {text}")


_TRIES = 3


def open_cache(path: Path, *, writable: bool, sync: bool) -> tuple[lmdb.Environment, Tables]:
    """Handle and tables of the cache at `path`, made or migrated where it may be written.

    Raises:
        CacheError: If the path is no cache and cannot become one, or is being compacted.
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


def _open_current(path: Path, writable: bool, sync: bool) -> lmdb.Environment:
    """LMDB on the file that is there now, not on one that `compact` has just replaced."""
    for _ in range(_TRIES):
        check_not_compacting(path)
        before = identity(path)
        handle = open_handle(path, readonly=not writable, sync=sync)
        if before in (None, identity(path)):
            return handle
        handle.close()
    raise CacheError(f"cache {path} was replaced while it was opened; try again")
