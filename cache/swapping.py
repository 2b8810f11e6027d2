"""Another data file in place of a cache's, while nobody has it open.

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

from cache.errors import CacheError
from cache.handle import open_handle
from cache.location import COMPACT, DATA, LOCK
from cache.soundness import note_sound


def put_in_place(file: Path, path: Path) -> None:
    """Make `file`, which is sound and on the disk, the data file of the cache at `path`."""
    file.replace(path / DATA)
    _sync_directory(path)
    note_sound(path, durable=True)
    # Those who wait for the lock take the lock file as they find it: leave it as for the new file.
    open_handle(path, readonly=False).close()


@contextmanager
def alone(path: Path) -> Iterator[int]:
    """The file for a copy, empty, while no other process has the cache open or replaces its file.

    Raises:
        CacheError: If another process has.
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
