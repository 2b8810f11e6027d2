"""Ctrl-C and SIGTERM as a wish to stop at the next step, not in the middle of one."""

import os
import signal
from types import FrameType, TracebackType
from typing import Self

_WATCHED = (signal.SIGINT, signal.SIGTERM)


class Interrupt:
    """Notes the first SIGINT or SIGTERM while it is entered; a second Ctrl-C acts at once.

    Main thread only. Processes forked meanwhile, such as loader workers, end on SIGTERM as usual
    and leave Ctrl-C, which a terminal sends to all, to their parent.
    """

    def __init__(self) -> None:
        """Watch nothing yet."""
        self.received: signal.Signals | None = None
        self._owner = os.getpid()
        self._before: dict[signal.Signals, signal._HANDLER] = {}

    @property
    def exit_status(self) -> int:
        """What the process should exit with: 128 plus the signal, 0 without one."""
        return 128 + self.received if self.received is not None else 0

    def __enter__(self) -> Self:
        """Start to watch."""
        self._owner = os.getpid()
        self._before = {number: signal.signal(number, self._note) for number in _WATCHED}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Handle signals as before."""
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
