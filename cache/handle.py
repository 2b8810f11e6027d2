"""LMDB's own object: the settings it is opened with and the errors it raises."""

import errno
from collections.abc import Callable
from pathlib import Path

import lmdb

from cache.errors import CacheError, CacheFullError
from cache.schema import recognise
from cache.tables import Tables, Transaction

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
