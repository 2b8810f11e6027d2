"""Replacing the data file of a cache by a copy without free pages.

While LMDB has a cache open it holds a shared lock on the first byte of its lock file. So an
exclusive lock means that no process has it open, and keeps newcomers out: writers wait in LMDB for
the lock before they open the data; readers have opened the old file by then and notice that it was
replaced. Such locks end when the process closes any descriptor of the file, so the lock file is
opened and closed here only while this process does not have the cache open in LMDB.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import lmdb

from cache.backend.directory import COMPACT, DATA, LOCK, check_free
from cache.backend.environment import Environment
from cache.backend.opening import note_sound, open_handle, open_tables, worded
from cache.backend.tables import pages_bytes
from cache.errors import CacheError


def compact(environment: Environment) -> int:
    """Write the data file anew without its free pages; return the bytes that the disk got back.

    Raises:
        CacheError: If another process has the cache open.
        CacheFullError: If the disk has no room for the copy.
    """
    environment.open()  # creates it, or says why that cannot be
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
        # Processes that wait for the lock take the lock file as they find it: make it fit.
        open_handle(path, readonly=False).close()
        return before - (path / DATA).stat().st_size


@contextmanager
def _alone(path: Path) -> Iterator[int]:
    """Yield an empty file for the copy, while no other process has the cache open or compacts it.

    Raises:
        CacheError: If another process has it open or compacts it.
    """
    copy = os.open(path / COMPACT, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        _lock(
            copy, f"cache {path} is being compacted by another process; try again when that is done"
        )
        lock = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            _lock(lock, f"cache {path} is open in another process; end that first")
            os.ftruncate(copy, 0)
            yield copy
        finally:
            os.close(lock)
            _remove(path / COMPACT, copy)
    finally:
        os.close(copy)


def _lock(file: int, refusal: str) -> None:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1)
    except OSError as error:
        raise CacheError(refusal) from error


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


def _sync_directory(path: Path) -> None:
    directory = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _remove(path: Path, file: int) -> None:
    # After the replacement another process may have made its own.
    with suppress(FileNotFoundError):
        if os.path.samestat(path.stat(), os.fstat(file)):
            path.unlink()
