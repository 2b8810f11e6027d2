"""The launches of a comparison: one child process each, which ends with this one.

What a child says on standard error goes to its log as well, and all it says does if nobody watches.
A signal that asks to stop is passed on to the children, which then leave a checkpoint.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import IO

from online_aug.comparison.runs import Run
from online_aug.errors import RunError
from online_aug.processes import die_with_parent, packages_first, passing_on

_CHUNK_BYTES = 65536


class Launches:
    """The commands that run now, and the signals that have come meanwhile."""

    def __init__(self, received: Sequence[int]) -> None:
        """Start none; `received` grows with every signal."""
        self._running: set[subprocess.Popen[bytes]] = set()
        self._received = received

    @property
    def exit_status(self) -> int:
        """128 plus the first signal, 0 if there was none."""
        return 128 + self._received[0] if self._received else 0

    def run(self, command: str, run: Run, *, is_shown: bool) -> int:
        """Run a command of ours on the recipe and overrides of a run; not after a signal.

        Args:
            command: `train` or `fill`.
            run: The run; its log is replaced.
            is_shown: Whether to show what the command says, its live panel included.

        Returns:
            Its exit status: 128 plus the signal that ended it.
        """
        if self._received:
            return self.exit_status
        run.folder.parent.mkdir(parents=True, exist_ok=True)
        words = [sys.executable, "-P", "-m", "online_aug", command, run.recipe, *run.overrides]
        with run.log.open("wb") as log:
            child = subprocess.Popen(
                words,
                env=os.environ | packages_first(),
                stdin=subprocess.DEVNULL,
                stdout=None if is_shown else log,
                stderr=subprocess.PIPE if is_shown else subprocess.STDOUT,
                # Ctrl-C in a terminal reaches this process alone, which passes it on once.
                start_new_session=True,
                preexec_fn=partial(die_with_parent, signal.SIGTERM),
            )
            self._running.add(child)
            try:
                if child.stderr is not None:
                    _copy(child.stderr, log)
                status = child.wait()
            finally:
                self._running.discard(child)
        return status if status >= 0 else 128 - status

    def train(self, run: Run, *, is_shown: bool) -> None:
        """Train a run unless it is finished.

        Args:
            run: The run.
            is_shown: Whether to show what the training says.

        Raises:
            RunError: If it fails.
            SystemExit: With 128 plus the signal that interrupted it.
        """
        status = 0 if run.is_finished else self.run("train", run, is_shown=is_shown)
        if self.exit_status:
            sys.stdout.write(f"interrupted at {run.title}: the same command goes on\n")
            sys.exit(self.exit_status)
        if status:
            raise RunError(
                f"{run.title} ended with status {status}, see {run.log}; the same command goes on "
                "with it"
            )

    def send(self, number: int) -> None:
        """Send a signal to all that run."""
        for child in [*self._running]:
            child.send_signal(number)


@contextmanager
def launching() -> Iterator[Launches]:
    """Start commands inside; signals meanwhile are passed on to them. Main thread only."""
    found: list[Launches] = []
    with passing_on(
        lambda number: found[0].send(number), lambda: found[0].send(signal.SIGKILL)
    ) as received:
        found.append(Launches(received))
        yield found[0]


def _copy(source: IO[bytes], log: IO[bytes]) -> None:
    while chunk := os.read(source.fileno(), _CHUNK_BYTES):
        log.write(chunk)
        log.flush()
        sys.stderr.write(chunk.decode(errors="replace"))
        sys.stderr.flush()
