"""The lock of a run directory: one process at a time trains in it.

The lock is the kernel's, so that it is free the moment its owner ends, however that happens. The
file lies beside the directory, which may be moved aside, and says who holds it.
"""

import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil

from online_aug.errors import UserError

_TAKEN = (errno.EACCES, errno.EAGAIN)
_UNKNOWN = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""Errors of a file system that has no locks."""
_LONGEST_RECORD = 4096
_TASKS = "SLURM_NTASKS"


@dataclass(frozen=True, kw_only=True)
class Owner:
    """The process that holds a lock."""

    host: str
    pid: int
    started: float
    """When the process began, seconds since 1970."""

    @property
    def is_alive(self) -> bool:
        """Whether it may still run; a process on another machine may."""
        if self.host != socket.gethostname():
            return True
        with suppress(psutil.NoSuchProcess):
            return bool(psutil.Process(self.pid).create_time() == self.started)
        return False

    def __str__(self) -> str:
        began = datetime.fromtimestamp(self.started, UTC).astimezone()
        return f"process {self.pid} on {self.host}, started {began:%Y-%m-%d %H:%M:%S},"


def lock_path(directory: Path) -> Path:
    """Return the place of the lock of a run directory, which need not exist."""
    place = directory.resolve()
    return place.with_name(f".{place.name}.lock")


def check_free(directory: Path) -> None:
    """Refuse a run directory in which another process trains; write nothing.

    Not in a process that holds the lock itself: it would be freed.

    Raises:
        UserError: If so, naming the process.
    """
    with suppress(FileNotFoundError):
        os.close(_opened(directory, os.O_RDWR))


@contextmanager
def sole_trainer(directory: Path) -> Iterator[None]:
    """Hold the lock of a run directory while the block runs; forked processes do not hold it.

    Raises:
        UserError: If another process holds it, or its folder cannot be written.
    """
    place = lock_path(directory)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _opened(directory, os.O_RDWR | os.O_CREAT)
    except OSError as error:
        raise UserError(
            f"run directory {directory} must be writable, got: {error.strerror}; choose another "
            "run.dir"
        ) from None
    own = psutil.Process()
    owner = Owner(host=socket.gethostname(), pid=own.pid, started=own.create_time())
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(asdict(owner)).encode(), 0)
    try:
        yield
    finally:
        place.unlink(missing_ok=True)
        os.close(descriptor)


def _opened(directory: Path, flags: int) -> int:
    """Return the descriptor of the lock file, locked."""
    place = lock_path(directory)
    while True:
        descriptor = os.open(place, flags, 0o666)
        try:
            _lock(descriptor, directory)
            if _is_same_file(descriptor, place):
                return descriptor
        except UserError:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its owner has just removed it


def _lock(descriptor: int, directory: Path) -> None:
    owner = _owner(os.pread(descriptor, _LONGEST_RECORD, 0))
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _UNKNOWN and not (owner and owner.is_alive):
            return
        if error.errno not in (*_TAKEN, *_UNKNOWN):
            raise
        raise UserError(
            f"run directory {directory} must be free, {owner or 'another process'} trains in it: "
            f"wait for its end, or choose another run.name{_slurm_hint()}"
        ) from None


def _owner(record: bytes) -> Owner | None:
    with suppress(ValueError, TypeError):
        return Owner(**json.loads(record))
    return None


def _is_same_file(descriptor: int, place: Path) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), place.stat())
    return False


def _slurm_hint() -> str:
    tasks = os.environ.get(_TASKS, "1")
    if tasks == "1" or "RANK" in os.environ:
        return ""
    page = "docs/guide/SEVERAL_MACHINES.md"
    return f"; SLURM has started {tasks} tasks: start one, or a launcher ({page})"
