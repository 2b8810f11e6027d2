"""The worker processes of a loader: how they begin, the memory they share, and why one has ended.

A worker hands a batch over in shared memory (`/dev/shm`), which containers keep small, and with a
socket in the folder for temporary files. Torch waits for ever for a batch that cannot be handed
over. Here such a worker ends with its reason, and the loader says what is likely to help.
"""

import multiprocessing
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any, NoReturn

import psutil

from cache.text import byte_size
from online_aug.errors import UserError, one_line
from online_aug.processes import die_with_parent

SHARED_MEMORY = Path("/dev/shm")
PREFETCHED = 2
"""Batches that each worker makes ahead."""
_LONGEST_REASON = 2000
_MOMENT_S = 0.5
_NO_ROOM = ("No space left", "unable to allocate shared memory", "unable to write")
"""Words in torch's errors when shared memory is full."""


class WorkerReasons:
    """The reasons that workers give before they end; `begin` runs in each worker first."""

    def __init__(self) -> None:
        """Open the pipe that all workers write to."""
        self._heard, self._told = multiprocessing.Pipe(duplex=False)

    def begin(self, number: int) -> None:
        """End with the main process, at once on a bus error, and if a batch cannot be given."""
        die_with_parent(signal.SIGKILL)
        signal.signal(signal.SIGBUS, signal.SIG_DFL)
        told = self._told

        def give_up(error: Exception, batch: Any) -> NoReturn:
            told.send_bytes(one_line(error).encode()[:_LONGEST_REASON])
            os._exit(1)

        Queue._on_queue_feeder_error = staticmethod(give_up)  # type: ignore[attr-defined]

    def read(self) -> str:
        """Return the first reason; empty if a worker ended without one."""
        return _first(self._heard)


def _first(pipe: Connection) -> str:
    return pipe.recv_bytes().decode(errors="replace") if pipe.poll() else ""


@contextmanager
def no_sudden_errors() -> Iterator[None]:
    """Keep torch from raising at the end of a worker wherever the main process is just then.

    It would in the middle of an optimizer step. The next batch that is asked for raises too.
    """
    before = signal.getsignal(signal.SIGCHLD)
    yield
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, before)


def exit_codes(workers: Sequence[BaseProcess]) -> list[int | None]:
    """Return the exit status of each worker, None for those that run; wait a moment for one."""
    ending = wait([worker.sentinel for worker in workers], _MOMENT_S)
    for worker in workers:
        if worker.sentinel in ending:
            worker.join()  # its files are closed a little before it has a status
    return [worker.exitcode for worker in workers]


def with_reasons(
    begin: Callable[[], Iterator[Any]],
    begun: Callable[[], object],
    reasons: WorkerReasons,
    batch_bytes: Callable[[], int],
) -> Iterator[Any]:
    """Yield what the workers hand over; the error of one that has ended says why.

    Args:
        begin: Returns the iterator of a DataLoader; in a later epoch it waits for the workers.
        begun: Returns the iterator that the DataLoader keeps, with its workers.
        reasons: What its workers say before they end.
        batch_bytes: Returns the size of a batch; 0 if none has come yet.

    Raises:
        UserError: If a worker has ended, or could not use its input.
    """
    try:
        with no_sudden_errors():
            batches = begin()
        while (batch := next(batches, None)) is not None:
            yield batch
    except UserError as error:
        raise _without_traceback(error) from None
    except (RuntimeError, OSError, EOFError):  # whatever it was doing when a worker ended
        ended = exit_codes(getattr(begun(), "_workers", ()))
        if all(code is None for code in ended):
            raise
        raise worker_error(ended, reasons.read(), batch_bytes()) from None


def _without_traceback(error: UserError) -> UserError:
    lines = str(error).strip().splitlines() or [""]
    if not lines[0].startswith(f"Caught {type(error).__name__} in"):
        return error
    return type(error)(lines[-1].partition(": ")[2])


def worker_error(ended: Sequence[int | None], reason: str, batch_bytes: int) -> UserError:
    """Return the error for a loader of which a worker has ended.

    Args:
        ended: The exit status of each worker; None for those that run.
        reason: What a worker said before it ended, or nothing.
        batch_bytes: Size of a batch; 0 if none has come yet.
    """
    status = next(code for code in ended if code is not None)
    how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended ({status})"
    if reason:
        how = f"could not hand over a batch ({reason})"
    return UserError(
        f"data.workers must be able to work, one of {len(ended)} {how}: "
        f"{_advice(status, reason, len(ended), batch_bytes)}"
    )


def _advice(status: int, reason: str, workers: int, batch_bytes: int) -> str:
    if "AF_UNIX" in reason:
        return (
            f"TMPDIR must be a short path, got {len(tempfile.gettempdir())} letters; or set "
            "data.workers=0"
        )
    if status == -signal.SIGKILL and not reason:
        memory = psutil.virtual_memory()
        return (
            "the kernel does so when memory runs out "
            f"({byte_size(memory.available)} of {byte_size(memory.total)} left here; a container "
            f"or a job may have less); lower data.workers, or {_more_shared_memory()}"
        )
    if status == -signal.SIGBUS or any(words in reason for words in _NO_ROOM):
        needed = _in_flight(workers, batch_bytes)
        asked = f"batches need up to {byte_size(needed)} of shared memory, and " if needed else ""
        return f"{asked}{_more_shared_memory()}"
    return "set data.workers=0 to see why"


def _more_shared_memory() -> str:
    total, free = shared_memory()
    return (
        f"{SHARED_MEMORY} has {byte_size(free)} free of {byte_size(total)}: start the container "
        "with a larger --shm-size or with --ipc=host, or set data.workers=0"
    )


def shared_memory(path: Path = SHARED_MEMORY) -> tuple[int, int]:
    """Return the size of shared memory and what is free of it, in bytes; 0 if there is none."""
    try:
        found = os.statvfs(path)
    except OSError:
        return 0, 0
    return found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize


def shared_memory_warning(workers: int, ranks: int, batch_bytes: int) -> str | None:
    """Return a line if shared memory has no room for the batches in flight on this node.

    Args:
        workers: Worker processes of each rank.
        ranks: Ranks on this node.
        batch_bytes: Size of a rank's batch.
    """
    needed = ranks * _in_flight(workers, batch_bytes)
    if workers == 0 or needed <= shared_memory()[1]:
        return None
    return (
        f"data.workers={workers} may need {byte_size(needed)} of shared memory for their batches, "
        f"and {_more_shared_memory()}"
    )


def _in_flight(workers: int, batch_bytes: int) -> int:
    return (workers * PREFETCHED + 1) * batch_bytes
