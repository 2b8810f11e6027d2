"""Whether a directory can hold a cache: local, writable, empty or already one."""

import os
import re
from pathlib import Path

from cache.errors import CacheError

DATA, LOCK = "data.mdb", "lock.mdb"
MOUNTS = Path("/proc/mounts")

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
        others = {item.name for item in path.iterdir()} - {DATA, LOCK}
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
