"""Which file system a path is on, and whether LMDB works there."""

import ctypes
import os
import re
import sys
from pathlib import Path

from cache.errors import CacheError

MOUNTS = Path("/proc/mounts")

# LMDB's processes meet in shared memory and fcntl locks, which these do not keep coherent.
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
"""What `statfs` says of them; of a file system in user space only the list of mounts says more."""
_STATFS_BYTES = 256
"""More than Linux writes on any machine; its first word is the type."""


def check_local(path: Path) -> None:
    """Refuse a path on a network file system; says nothing where the system tells neither way.

    Args:
        path: Absolute and without symbolic links; need not exist.

    Raises:
        CacheError: If the list of mounts or the kernel says that it is on one.
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


def magic_of(path: Path) -> int:
    """The kernel's number for the file system that holds `path`; 0 where it cannot be told."""
    if sys.platform != "linux":
        return 0
    nearest = next(folder for folder in (path, *path.parents) if os.path.exists(folder))  # noqa: PTH110
    answer = ctypes.create_string_buffer(_STATFS_BYTES)
    if ctypes.CDLL(None).statfs(str(nearest).encode(errors="surrogateescape"), answer):
        return 0
    word = ctypes.c_long.from_buffer(answer).value
    return word % 2**32  # some types have the sign bit set where a word has 32 bits
