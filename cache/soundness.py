"""Whether LMDB may be let at a data file: it follows damaged pages into a crash or a hang.

A note beside the data file says which file was last known to be sound. One that is not noted, such
as a copy or one that another program wrote to, is examined by a child process before it is opened.
"""

import fcntl
import os
import struct
import subprocess
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path

from cache.errors import CacheError, DamagedCacheError
from cache.location import DATA, LOCK, NOTE

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
        DamagedCacheError: If its pages are damaged or it is no file of LMDB's.
        CacheError: If it cannot be examined.
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
        return DamagedCacheError(
            f"cache path must hold a cache, got {path} with another file ({lines[0]})"
        )
    if done.returncode:
        return CacheError(f"cache {path} cannot be examined for damage: {lines[-1]}")
    if not done.stdout:
        return None
    return DamagedCacheError(
        f"cache {path} is damaged: {lines[0]} ({len(lines)} such); its records were not changed; "
        "put back a copy of data.mdb, or take them into a new file with "
        f"python -m cache verify --repair {path}"
    )


@cache
def _boot() -> str:
    try:
        return _BOOT.read_text().strip()
    except OSError:
        return "unknown"
