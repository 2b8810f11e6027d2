"""The generation process' end of the pipe: messages both ways, and death with its parent."""

import ctypes
import os
import signal
import threading
import time

from online_aug.generation.messages import (
    BEAT_S,
    Alive,
    ClassLosses,
    Failed,
    NewMaps,
    ServedCount,
    Status,
    read_by_generator,
)

_PR_SET_PDEATHSIG = 1


class Lifeline:
    """Listens to the trainer on standard input; ends this process when the trainer is gone."""

    def __init__(self) -> None:
        """Start listening; standard output becomes the message channel and prints go to the log."""
        self.served = 0
        self.saliency_version: str | None = None
        self.class_losses: tuple[float | None, ...] | None = None
        self.is_stopping = False
        self._out = os.fdopen(os.dup(1), "wb")
        os.dup2(2, 1)  # what libraries print must not mix with messages
        self._telling = threading.Lock()
        threading.Thread(target=self._listen, daemon=True).start()
        threading.Thread(target=self._beat, daemon=True).start()

    def tell(self, message: Status | Alive | Failed) -> None:
        """Send a message; without a listener there is nobody left to work for."""
        try:
            with self._telling:
                self._out.write(message.model_dump_json().encode() + b"\n")
                self._out.flush()
        except BrokenPipeError:
            os._exit(1)

    def _beat(self) -> None:
        while True:
            time.sleep(BEAT_S)
            self.tell(Alive())

    def _listen(self) -> None:
        pending = b""
        while received := os.read(0, 65536):  # Python's own buffered reader may hang at exit
            *lines, pending = (pending + received).split(b"\n")
            for line in lines:
                self._take(line)
        if not self.is_stopping:
            os._exit(1)  # the trainer died; the cache is safe at any moment

    def _take(self, line: bytes) -> None:
        message = read_by_generator(line)
        if isinstance(message, ServedCount):
            self.served = message.fresh
        elif isinstance(message, NewMaps):
            self.saliency_version = message.version
        elif isinstance(message, ClassLosses):
            self.class_losses = message.losses
        else:
            self.is_stopping = True


def die_with_parent() -> None:
    """Ask the kernel to end this process when its parent does, however that happens."""
    expected = os.environ.get("ONLINE_AUG_PARENT")
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if expected is not None and os.getppid() != int(expected):
        os._exit(1)  # it was gone before the request
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the trainer, which says stop
