"""A file without free pages in place of one that eviction has emptied.

LMDB's processes hold a shared lock on the first byte of its lock file while they have it open. An
exclusive one therefore means that nobody has, and keeps those out who come meanwhile: writers wait
in LMDB for it before they open the data, readers have opened the old file by then and notice that
it was replaced. Those locks end when the process closes any descriptor of the file, so the lock
file is opened and closed here only while LMDB has not got it open in this process.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import lmdb

from cache.environment import Environment
from cache.errors import CacheError
from cache.handle import open_handle, worded
from cache.location import COMPACT, DATA, LOCK, check_free
from cache.schema import open_tables
from cache.soundness import note_sound
from cache.tables import pages_bytes


def compact(environment: Environment) -> int:
    """Replace the file of a cache by a copy without free pages; bytes that the disk got back.

    Raises:
        CacheError: If another process has the cache open.
        CacheFullError: If the disk has no room for the copy.
    """
    environment.open()  # makes or migrates it, or says why that cannot be
    path = environment.path
    with environment.reserved(), _alone(path) as copy:
        before = (path / DATA).stat().st_size
        try:
            _copy(path, copy)
        except lmdb.Error as error:
            raise worded(path, error) from error
        (path / COMPACT).replace(path / DATA)
        _sync_directory(path)
        note_sound(path, durable=True)
        # Those who wait for the lock take the lock file as they find it: leave it as for the copy.
        open_handle(path, readonly=False).close()
        return before - (path / DATA).stat().st_size


def _copy(path: Path, copy: int) -> None:
    handle = open_handle(path, readonly=True, lock=False)
    try:
        tables = open_tables(handle, path)
        with handle.begin() as txn:
            needed = pages_bytes(txn, tables)
        check_free(path, needed)
        handle.copyfd(copy, compact=True)
    finally:
        handle.close()
    os.fsync(copy)


@contextmanager
def _alone(path: Path) -> Iterator[int]:
    """The file for the copy, empty, while no other process has the cache open or compacts it."""
    copy = os.open(path / COMPACT, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        _lock(copy, f"cache {path} is being compacted by another process; wait for its end")
        lock = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            _lock(lock, f"cache {path} is open in another process; end that before compacting")
            os.ftruncate(copy, 0)
            yield copy
        finally:
            os.close(lock)
            _remove(path / COMPACT, copy)
    finally:
        os.close(copy)


def _remove(path: Path, file: int) -> None:
    # After the swap another process may have made its own.
    with suppress(FileNotFoundError):
        if os.path.samestat(path.stat(), os.fstat(file)):
            path.unlink()


def _lock(file: int, refusal: str) -> None:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1)
    except OSError as error:
        raise CacheError(refusal) from error


def _sync_directory(path: Path) -> None:
    directory = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
