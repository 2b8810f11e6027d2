"""Whether a directory can hold a cache: local, writable, empty or already one."""

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

from cache.errors import CacheError, CacheFullError

DATA, LOCK, COMPACT = "data.mdb", "lock.mdb", "data.mdb.compact"
NOTE = "sound"
"""Which data file was last known to be sound; made again where it is missing."""
MARGIN_BYTES = 2**20
"""Left free on the disk."""


def is_started(path: Path) -> bool:
    """Whether LMDB has written its file there."""
    try:
        return (path / DATA).stat().st_size > 0
    except OSError:
        return False


def identity(path: Path) -> tuple[int, int] | None:
    """What tells the cache's file from another one of that name, None if there is none."""
    try:
        found = (path / DATA).stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def check_not_compacting(path: Path) -> None:
    """Refuse a cache whose file is about to be replaced; what a killed one left does no harm.

    Raises:
        CacheError: If another process is compacting it.
    """
    try:
        file = os.open(path / COMPACT, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        raise CacheError(
            f"cache {path} is being compacted by another process; try again when that is done"
        ) from error
    finally:
        os.close(file)


def check_free(path: Path, needed: int, in_use: Callable[[], int] | None = None) -> None:
    """Refuse to write where the disk has no room for it.

    Args:
        path: The cache.
        needed: Bytes about to be written; a margin for LMDB's own pages is added.
        in_use: Tells how many bytes of the cache's file are in use: what it has beyond can be
            written again. Asked only where the disk alone has too little; None counts the disk.

    Raises:
        CacheFullError: If there is not enough room.
    """
    system = os.statvfs(path)
    free, needed = system.f_bavail * system.f_frsize, needed + MARGIN_BYTES
    if free < needed and in_use is not None:
        free += max(0, (path / DATA).stat().st_size - in_use())
    if free < needed:
        raise CacheFullError(
            f"cache {path} needs {needed} bytes of disk, {free} are free; "
            "free space, lower cache.max_gib or use another disk"
        )


def check_readable(path: Path) -> None:
    """Refuse a directory that holds no cache yet.

    Raises:
        CacheError: If it does not exist or LMDB never wrote there.
    """
    if not is_started(path):
        raise CacheError(f"cache path must be a directory with a cache, got {path}")


def make_writable(path: Path) -> None:
    """Create the directory where it is missing.

    Raises:
        CacheError: If it cannot be made or written, or holds something else.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        others = {item.name for item in path.iterdir()} - {DATA, LOCK, NOTE}
    except OSError as error:
        raise CacheError(
            f"cache path must be a directory that can be made and read, got {path}: "
            f"{error.strerror}"
        ) from error
    if others and not is_started(path):
        raise CacheError(
            f"cache path must be new, empty or a cache, got {path} with other files "
            f"({min(others)}); name a new directory"
        )
    if not os.access(path, os.W_OK | os.X_OK):
        raise CacheError(f"cache path must be writable, got {path}: Permission denied")
