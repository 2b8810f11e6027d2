"""Whether a directory can hold a cache: local, writable, empty or already one."""

import fcntl
import os
import re
from collections.abc import Callable
from pathlib import Path

from cache.errors import CacheError, CacheFullError

DATA, LOCK, COMPACT = "data.mdb", "lock.mdb", "data.mdb.compact"
NOTE = "sound"
"""Which data file was last known to be sound; made again where it is missing."""
MOUNTS = Path("/proc/mounts")
MARGIN_BYTES = 2**20
"""Left free on the disk."""

# LMDB's processes meet in shared memory and fcntl locks, which these do not keep coherent.
_NETWORK = frozenset(
    {
        *("9p", "afs", "beegfs", "ceph", "cifs", "coda", "davfs", "glusterfs", "gpfs", "lustre"),
        *("ncpfs", "nfs", "nfs4", "orangefs", "panfs", "pvfs2", "smb3", "smbfs", "wekafs"),
    }
)
_LOCAL_FUSE = frozenset({"fuse.mergerfs", "fuse.fuse-overlayfs", "fuse.lxcfs", "fuse.bindfs"})


def check_local(path: Path, mounts: Path | None = None) -> None:
    """Refuse a path on a network file system; says nothing where `mounts` cannot be read.

    Args:
        path: Absolute and without symbolic links; need not exist.
        mounts: What lists the mounted file systems, by default `/proc/mounts`.

    Raises:
        CacheError: If it is on one.
    """
    kind = filesystem_of(path, mounts or MOUNTS)
    if kind in _NETWORK or (kind.startswith("fuse.") and kind not in _LOCAL_FUSE):
        raise CacheError(
            f"cache path must be on a local disk, got {path} on {kind}: LMDB's locks and shared "
            "memory do not work over a network; use a local path and `merge` caches later"
        )


def filesystem_of(path: Path, mounts: Path) -> str:
    """The type of the file system that holds `path`, "" where it cannot be told."""
    try:
        lines = mounts.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return ""
    depth, kind = -1, ""
    for line in lines:
        _, point, name, *_ = [*line.split(" "), "", "", ""]
        mounted = Path(re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), point))
        # Of two mounts on one point the later hides the earlier.
        if path.is_relative_to(mounted) and len(mounted.parts) >= depth:
            depth, kind = len(mounted.parts), name
    return kind


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
