"""The directory of a cache: whether it exists, can be written, is local and has room.

LMDB maps the data file into memory, so `DataFile` also watches that the file stays in place.
"""

import ctypes
import fcntl
import math
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

from cache.errors import CacheError, CacheFullError

DATA, LOCK, COMPACT = "data.mdb", "lock.mdb", "data.mdb.compact"
NOTE = "sound"
"""Names the data file that was last known to be sound. May be deleted; it is written again."""
MARGIN_BYTES = 2**20
"""Disk space that is left free."""


def cache_exists(path: Path | str) -> bool:
    """Return whether there is a cache, or the start of one, in the directory `path`."""
    try:
        return (Path(path) / DATA).stat().st_size > 0
    except OSError:
        return False


def check_readable(path: Path) -> None:
    """Raise if there is no cache in `path`.

    Raises:
        CacheError: If the directory does not exist or LMDB has never written there.
    """
    if not cache_exists(path):
        raise CacheError(f"cache path must be a directory with a cache, got {path}")


def make_writable(path: Path) -> None:
    """Create the directory if it is missing, and check that a cache can be written there.

    Raises:
        CacheError: If it cannot be made or written, or holds something else.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _no_directory(path, error) from error
    _check_content(path)


def check_usable(path: Path) -> None:
    """Raise if `path` is no cache and could not become one; make and change nothing.

    Raises:
        CacheError: If it, or the folder it would be made in, holds something else or is read-only.
    """
    nearest = next(place for place in (path, *path.absolute().parents) if os.path.lexists(place))
    if nearest == path:
        _check_content(path)
    elif not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        reason = "is read-only" if nearest.is_dir() else "is no directory"
        raise CacheError(
            f"cache path must be a directory that can be made, got {path}: {nearest} {reason}"
        )


def _no_directory(path: Path, error: OSError) -> CacheError:
    return CacheError(
        f"cache path must be a directory that can be made and read, got {path}: {error.strerror}"
    )


def _check_content(path: Path) -> None:
    try:
        others = {item.name for item in path.iterdir()} - {DATA, LOCK, NOTE}
    except OSError as error:
        raise _no_directory(path, error) from error
    if others and not cache_exists(path):
        raise CacheError(
            f"cache path must be new, empty or a cache, got {path} with other files "
            f"({min(others)}); name a new directory"
        )
    if not os.access(path, os.W_OK | os.X_OK):
        raise CacheError(f"cache path must be writable, got {path}: Permission denied")


def identity(path: Path) -> tuple[int, int] | None:
    """Return device and inode of the data file, or None if there is no such file."""
    try:
        found = (path / DATA).stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def check_not_compacting(path: Path) -> None:
    """Raise if the data file is about to be replaced by a compacted copy.

    A copy that a killed process has left is no obstacle.

    Raises:
        CacheError: If another process is compacting the cache.
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
    """Raise if the disk has no room for a write.

    Args:
        path: Directory of the cache.
        needed: Bytes about to be written; a margin for LMDB's own pages is added.
        in_use: Returns how many bytes of the data file are in use, since its other pages can be
            written again. Called only if the disk alone has too little room; None counts the disk.

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


MOUNTS = Path("/proc/mounts")

# LMDB's processes share memory and fcntl locks, which these do not keep coherent.
_NETWORK = frozenset(
    {
        *("9p", "afs", "beegfs", "ceph", "cifs", "coda", "davfs", "glusterfs", "gpfs", "lustre"),
        *("ncpfs", "nfs", "nfs4", "orangefs", "panfs", "pvfs2", "smb3", "smbfs", "wekafs"),
    }
)
_LOCAL_FUSE = frozenset({"fuse.mergerfs", "fuse.fuse-overlayfs", "fuse.lxcfs", "fuse.bindfs"})
_MAGIC = {
    0x01021997: "9p",
    0x5346414F: "afs",
    0x6B414653: "afs",
    0x19830326: "beegfs",
    0x00C36400: "ceph",
    0xFF534D42: "cifs",
    0xFE534D42: "smb3",
    0x517B: "smbfs",
    0x73757245: "coda",
    0x47504653: "gpfs",
    0x0BD00BD0: "lustre",
    0x564C: "ncpfs",
    0x6969: "nfs",
    0x20030528: "orangefs",
    0xAAD7AAEA: "panfs",
}
"""Network file systems by the number in `statfs`. Those in user space are only told by mounts."""
_STATFS_BYTES = 256
"""More than `statfs` writes on any machine. Its first word is the type."""


def check_local(path: Path) -> None:
    """Raise if `path` is on a network file system. It is trusted if the system cannot tell.

    Args:
        path: Absolute path without symbolic links; it need not exist.

    Raises:
        CacheError: If the list of mounts or the kernel says that it is on a network.
    """
    listed = filesystem_of(path, MOUNTS)
    is_remote = listed in _NETWORK or (listed.startswith("fuse.") and listed not in _LOCAL_FUSE)
    kind = listed if is_remote else _MAGIC.get(magic_of(path), "")
    if kind:
        raise CacheError(
            f"cache path must be on a local disk, got {path} on {kind}: LMDB's locks and shared "
            "memory do not work over a network; use a local path and `merge` caches later"
        )


def filesystem_of(path: Path, mounts: Path) -> str:
    """Return the type of the file system that holds `path`, or "" if it is unknown."""
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


def magic_of(path: Path) -> int:
    """Return the kernel's number for the file system that holds `path`, or 0 if it is unknown."""
    if sys.platform != "linux":
        return 0
    nearest = next(folder for folder in (path, *path.parents) if os.path.exists(folder))  # noqa: PTH110
    answer = ctypes.create_string_buffer(_STATFS_BYTES)
    if ctypes.CDLL(None).statfs(str(nearest).encode(errors="surrogateescape"), answer):
        return 0
    word = ctypes.c_long.from_buffer(answer).value
    return word % 2**32  # some numbers have the sign bit of a 32-bit word set


PATH_CHECKED_EVERY_S = 1.0
"""Time between checks of the path, which take three times as long as those of the open file."""
READER_CHECKS_EVERY_S = 0.001
"""Time between checks by readers: one takes a quarter of what we add to a `get` of LMDB's."""


class DataFile:
    """The data file under an open environment.

    A process that reads a page that was cut off dies, and records written to a removed file are
    lost. So each use of the environment first checks that the file is still in place.
    """

    def __init__(self, path: Path) -> None:
        """Note which file is there now.

        Args:
            path: Directory of the cache.
        """
        self._folder, self._path = path, str(path / DATA)
        self._file = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        self._path_checked = self._checked = time.monotonic()
        found = os.fstat(self._file)
        self._inode, self._links, self._size = found.st_ino, found.st_nlink, found.st_size

    def check(self, *, write: bool = False) -> None:
        """Raise if the file is no longer in place. Readers look at most once in a millisecond.

        Raises:
            CacheError: If it was removed, replaced or cut short.
        """
        now = time.monotonic()
        if now - self._checked < READER_CHECKS_EVERY_S and not write:
            return
        self._checked = now
        if not self._is_in_place(now):
            self._checked = -math.inf  # every reader looks until the file is put back
            raise CacheError(
                f"cache {self._folder} was removed, replaced or cut short while it was open; "
                "put it back, or close the store to start with what is there now"
            )

    def close(self) -> None:
        """Close the file. LMDB's locks are on another file and stay."""
        os.close(self._file)

    def _is_in_place(self, now: float) -> bool:
        found = os.fstat(self._file)
        has_changed = found.st_nlink != self._links or found.st_size < self._size
        if has_changed or now - self._path_checked >= PATH_CHECKED_EVERY_S:
            return self._is_at_path(now)
        self._size = found.st_size
        return True

    def _is_at_path(self, now: float) -> bool:
        try:
            found = os.stat(self._path)  # noqa: PTH116  # a Path takes twice as long
        except OSError:
            return False
        if found.st_ino != self._inode or found.st_size < self._size:
            return False
        self._links, self._size, self._path_checked = found.st_nlink, found.st_size, now
        return True
