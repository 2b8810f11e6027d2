"""The end of processes: at the next step after a signal, with their parent, leaving none behind.

A terminal that is closed and a pipe that nobody reads are signals too.
"""

import ctypes
import errno
import io
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

import psutil

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""The signals that ask a run to stop: Ctrl-C, the end of a job, the end of its terminal."""


def packages_first() -> dict[str, str]:
    """Return `PYTHONPATH` for a process of ours that starts in a folder of the user's.

    Started with `python -P`, it imports these packages even if that folder has a `cache` too.
    """
    packages = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    return {"PYTHONPATH": os.pathsep.join(filter(None, packages))}


def heeded() -> list[signal.Signals]:
    """Return the signals of `STOPPING` that count here: `nohup` makes a process ignore SIGHUP."""
    is_ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return [number for number in STOPPING if number != signal.SIGHUP or not is_ignored]


class Interrupt:
    """A note of the first signal of `STOPPING`, so that a loop can stop at the next step.

    Main thread only. A second Ctrl-C raises `KeyboardInterrupt`. Processes forked meanwhile, such
    as loader workers, end on SIGTERM as usual and ignore the others, which a terminal sends to all.
    """

    def __init__(self) -> None:
        """Note nothing before it is entered."""
        self.received: signal.Signals | None = None
        self._owner = os.getpid()
        self._before: dict[signal.Signals, signal._HANDLER] = {}

    @property
    def exit_status(self) -> int:
        """The exit status: 128 plus the signal, 0 if there was none."""
        return 128 + self.received if self.received is not None else 0

    def __enter__(self) -> Self:
        """Start to note signals."""
        self._owner = os.getpid()
        self._before = {number: signal.signal(number, self._note) for number in heeded()}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Restore the handlers."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:
            _act_in_fork(number)
        elif self.received is None:
            self.received = signal.Signals(number)
        elif number == signal.SIGINT:
            raise KeyboardInterrupt


def _act_in_fork(number: int) -> None:
    if number == signal.SIGTERM:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


PATIENCE = 2
"""Number of signals that are passed on; the next one kills."""


@contextmanager
def passing_on(send: Callable[[int], None], kill: Callable[[], None]) -> Iterator[list[int]]:
    """Pass the signals of `STOPPING` on to processes while the block runs; main thread only.

    Args:
        send: Called with the first signals, up to `PATIENCE`.
        kill: Called after that.

    Yields:
        The signals that have come so far, in order.
    """
    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if len(received) > PATIENCE:
            kill()
        else:
            send(number)

    watched = heeded()
    before = [signal.signal(number, handle) for number in watched]
    try:
        yield received
    finally:
        for number, handler in zip(watched, before, strict=True):
            signal.signal(number, handler)


def outlive_terminal() -> None:
    """Go on without a word if the terminal, or the reader of a pipe, goes away.

    What is written to it afterwards is dropped. If that was standard output, this process gets
    SIGHUP, as from a terminal that is closed: a run stops after a checkpoint, and one under
    `nohup` goes on.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None or stream is not getattr(sys, f"__{name}__"):
            continue  # somebody else's, as in a test or a notebook
        stream.flush()
        setattr(sys, name, _lasting(stream, is_heeded=name == "stdout"))


def _lasting(stream: io.TextIOWrapper, *, is_heeded: bool) -> io.TextIOWrapper:
    raw = _LastingFile(stream.fileno(), "w", closefd=False)
    raw.is_heeded = is_heeded
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        stream.encoding,
        stream.errors,
        line_buffering=stream.line_buffering or stream.write_through,
    )


class _LastingFile(io.FileIO):
    is_heeded = False

    def write(self, content: Any) -> int:
        try:
            return super().write(content)
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):
                raise
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self.fileno())
        os.close(null)
        if self.is_heeded:
            os.kill(os.getpid(), signal.SIGHUP)
        return memoryview(content).nbytes


_SET_PARENT_DEATH_SIGNAL = 1
_SET_CHILD_SUBREAPER = 36
_GRACE_S = 5.0


def die_with_parent(number: signal.Signals) -> None:
    """Make the kernel send this process a signal when its parent ends, however it ends.

    The kernel means the thread of the parent that started this process.
    """
    _prctl(_SET_PARENT_DEATH_SIGNAL, number)


def age_s(pid: int) -> float:
    """Return how long ago a process began; 0 if it is gone."""
    try:
        return max(0.0, time.time() - float(psutil.Process(pid).create_time()))
    except psutil.NoSuchProcess:
        return 0.0


def adopt_orphans(is_adopting: bool) -> None:
    """Start or stop being the parent of every descendant whose own parent dies."""
    _prctl(_SET_CHILD_SUBREAPER, int(is_adopting))


def end_descendants(spared: set[int]) -> None:
    """Kill all descendants and wait, but spare these children and their descendants."""
    while left := _descendants(spared):
        for process in left:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(left, timeout=_GRACE_S)


def _descendants(spared: set[int]) -> list[psutil.Process]:
    found: list[psutil.Process] = []
    for child in psutil.Process().children():
        if child.pid in spared:
            continue
        try:
            found += [child, *child.children(recursive=True)]
        except psutil.NoSuchProcess:
            continue
    return found


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0):
        raise OSError(
            ctypes.get_errno(), f"prctl({option}) failed: {os.strerror(ctypes.get_errno())}"
        )
