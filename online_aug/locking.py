"""One process at a time."""

import errno
import fcntl
import math
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

_LOOK_EVERY_S = 0.05


def lock_of_user(name: str) -> Path:
    """The lock file of this name among the processes of this user on this machine."""
    return Path(tempfile.gettempdir()) / f"online_aug-{os.getuid()}-{name}.lock"


@contextmanager
def alone(lock: Path, patience_s: float = math.inf) -> Iterator[None]:
    """Hold a lock file; others wait, and the kernel frees it however this process ends.

    Args:
        lock: The file, made where it is missing.
        patience_s: How long to wait for another holder.

    Raises:
        BlockingIOError: If another still holds it by then.
        OSError: If the file or its folder cannot be written.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + patience_s
    with lock.open("w") as file:
        while not _took(file, waits=patience_s == math.inf):
            if time.monotonic() >= until:
                raise BlockingIOError(errno.EWOULDBLOCK, "held by another process", str(lock))
            time.sleep(_LOOK_EVERY_S)
        yield


def _took(file: IO[str], *, waits: bool) -> bool:
    """Whether the lock is now this process'."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX if waits else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
