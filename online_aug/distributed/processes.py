"""The end of processes: at the next step after a signal, with their parent, leaving none behind."""

import ctypes
import os
import signal
from types import FrameType, TracebackType
from typing import Self

import psutil

_WATCHED = (signal.SIGINT, signal.SIGTERM)


class Interrupt:
    """A note of the first SIGINT or SIGTERM, so that a loop can stop at the next step.

    Main thread only. A second Ctrl-C raises `KeyboardInterrupt`. Processes forked meanwhile, such
    as loader workers, end on SIGTERM as usual and ignore Ctrl-C, which a terminal sends to all.
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
        self._before = {number: signal.signal(number, self._note) for number in _WATCHED}
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


_SET_PARENT_DEATH_SIGNAL = 1
_SET_CHILD_SUBREAPER = 36
_GRACE_S = 5.0


def die_with_parent(number: signal.Signals) -> None:
    """Make the kernel send this process a signal when its parent ends, however it ends.

    The kernel means the thread of the parent that started this process.
    """
    _prctl(_SET_PARENT_DEATH_SIGNAL, number)


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
