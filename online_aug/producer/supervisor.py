"""The trainer's hold on its generation processes: start, listen, restart, stop.

`Supervisor` looks after one process, `SupervisorGroup` after all generation processes of a node.
"""

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import reduce
from pathlib import Path
from typing import get_args

from online_aug.distributed.identity import RANK_VARIABLES
from online_aug.errors import UserError
from online_aug.loader.back_pressure import divide_served
from online_aug.producer.messages import (
    PARENT_VARIABLE,
    Begin,
    ClassLosses,
    Failed,
    FromTrainer,
    NewMaps,
    ServedCount,
    State,
    Status,
    Stop,
    read_from_generator,
    to_line,
)

MAX_RESTARTS = 5
"""Restarts in a row after which a process that makes nothing is given up."""
BACK_OFF_S = 1.0
"""Wait before the first restart; it doubles with each further one in a row."""
STOP_TIMEOUT_S = 20.0
"""How long a process has to end after it was told to stop."""
END_TIMEOUT_S = 5.0
"""How long it has to end after SIGTERM."""
LAST_MESSAGES_S = 5.0
"""How long to wait for the last messages of a process that has ended."""
SILENT_S = 60.0
"""Silence after which a process counts as hung; it speaks every `ALIVE_EVERY_S`."""
MAKE_SURE_S = 5.0
"""Further silence to wait for: if the whole machine slept, messages are still in the pipe."""
_log = logging.getLogger(__name__)


class Supervisor:
    """One generation process, restarted with back-off when it dies.

    The process holds the reading end of its standard input: when the trainer ends, however that
    happens, the pipe closes and the process ends too.
    """

    def __init__(self, command: Sequence[str], log: Path, environment: dict[str, str]) -> None:
        """Take the command line of the process; nothing starts yet.

        Args:
            command: Arguments of the Python interpreter.
            log: File to which its standard error is appended.
            environment: Variables it gets beside those of this process, such as its device.
        """
        self._command = [sys.executable, *command]
        self._log_path = log
        self._environment = environment
        self._process: _Process | None = None
        self._lasting: dict[str, Begin | NewMaps | ClassLosses] = {}
        self._start_at = 0.0
        self._failed_in_a_row = 0
        self._earlier = Status(state="loading")
        self.restarts = 0

    @property
    def status(self) -> Status:
        """State and counts over all restarts."""
        if self._process is None:
            return self._earlier
        return self._process.status.after(self._earlier)

    def warm_up(self) -> None:
        """Start the process, which imports its libraries and waits until `start` is called.

        Call it from the main thread, whose end also ends the process.
        """
        environment = {k: v for k, v in os.environ.items() if k not in RANK_VARIABLES}
        environment |= self._environment | {PARENT_VARIABLE: str(os.getpid())}
        self._process = _Process(self._command, self._log_path, environment)
        for message in self._lasting.values():
            self._process.send(message)

    def start(self) -> None:
        """Let the process make images; without `warm_up` it is started now."""
        self._send_for_good(Begin())
        if self._process is None:
            self.warm_up()

    def check(self) -> None:
        """Notice a dead or hung process and restart it in time; cheap enough for every batch.

        Raises:
            UserError: If it failed for a reason that a restart cannot help, or too often.
        """
        if self._process is None:
            if time.monotonic() >= self._start_at:
                self.warm_up()
            return
        exit_status = self._process.poll()
        if exit_status is None:
            return
        if exit_status == 0 and self._process.status.state in {"finished", "full"}:
            return
        self._plan_restart(self._process, exit_status)

    def served(self, fresh: int) -> None:
        """Tell the process how many fresh images this run has served so far."""
        self._send(ServedCount(fresh=max(0, fresh - self._earlier.generated)))

    def publish(self, version: str) -> None:
        """Tell that the cache holds newer saliency maps; told again after a restart."""
        self._send_for_good(NewMaps(version=version))

    def publish_losses(self, losses: Sequence[float | None]) -> None:
        """Tell the classifier's loss on each class; told again after a restart."""
        self._send_for_good(ClassLosses(losses=tuple(losses)))

    def stop(self) -> None:
        """End the process: ask it first, then terminate it, then kill it.

        One that has nothing to make yet is not asked.
        """
        if self._process is not None:
            self._process.stop(is_asked=bool(self._lasting))
            self._forget(self._process)

    def _plan_restart(self, process: "_Process", exit_status: int) -> None:
        failure = process.failure
        reason = failure.reason if failure else f"exit status {exit_status}"
        has_worked = process.status.generated or process.status.rejected
        self._forget(process)
        self._earlier = Status(state="loading").after(self._earlier)
        if failure and failure.is_final:
            raise UserError(f"generation process: {reason}")
        self._failed_in_a_row = 0 if has_worked else self._failed_in_a_row + 1
        if self._failed_in_a_row > MAX_RESTARTS:
            raise UserError(
                f"generation process died {self._failed_in_a_row} times and made nothing, last: "
                f"{reason}; see {self._log_path}"
            )
        self.restarts += 1
        self._start_at = time.monotonic() + BACK_OFF_S * 2 ** max(0, self._failed_in_a_row - 1)
        _log.warning("generation process ended (%s), restart %d", reason, self.restarts)

    def _forget(self, process: "_Process") -> None:
        self._process, self._earlier = None, process.status.after(self._earlier)
        process.close()

    def _send_for_good(self, message: Begin | NewMaps | ClassLosses) -> None:
        self._lasting[message.type] = message
        self._send(message)

    def _send(self, message: FromTrainer) -> None:
        if self._process is not None:
            self._process.send(message)


class _Process:
    """A running generation process and what it has told so far."""

    def __init__(self, command: Sequence[str], log: Path, environment: dict[str, str]) -> None:
        with log.open("ab") as errors:
            self._child = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
                start_new_session=True,
            )
        self.status = Status(state="loading")
        self.failure: Failed | None = None
        self._heard_at = time.monotonic()
        self._silent_since: float | None = None
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def poll(self) -> int | None:
        """Return the exit status, all messages read, or None if it runs; kill it if it hangs."""
        exit_status = self._child.poll()
        if exit_status is None and self._is_hung():
            self._child.kill()  # a stopped process ends by nothing less
            exit_status = self._child.wait()
            self.failure = Failed(reason=f"no word for {SILENT_S:.0f} s", is_final=False)
        if exit_status is not None:
            self._listener.join(LAST_MESSAGES_S)  # they say how it ended
        return exit_status

    def send(self, message: FromTrainer) -> None:
        """Write a message to its standard input."""
        assert self._child.stdin is not None
        with suppress(BrokenPipeError):  # it has ended; the next poll says so
            self._child.stdin.write(to_line(message))
            self._child.stdin.flush()

    def stop(self, *, is_asked: bool) -> None:
        """Ask it to stop, then terminate, then kill it; return when its last message is read."""
        if is_asked:
            self.send(Stop())
        for end, patience_s in (
            *([(None, STOP_TIMEOUT_S)] if is_asked else []),
            (self._child.terminate, END_TIMEOUT_S),
            (self._child.kill, END_TIMEOUT_S),
        ):
            if end:
                end()
            with suppress(subprocess.TimeoutExpired):
                self._child.wait(patience_s)
                break
        self._listener.join(LAST_MESSAGES_S)

    def close(self) -> None:
        """Close its standard input."""
        with suppress(BrokenPipeError):  # closing flushes what it did not live to read
            if self._child.stdin:
                self._child.stdin.close()

    def _is_hung(self) -> bool:
        now = time.monotonic()
        if now - self._heard_at < SILENT_S:
            self._silent_since = None
            return False
        self._silent_since = self._silent_since or now
        return now - self._silent_since >= MAKE_SURE_S

    def _listen(self) -> None:
        assert self._child.stdout is not None
        with self._child.stdout:
            for line in self._child.stdout:
                message = read_from_generator(line)
                self._heard_at = time.monotonic()
                if isinstance(message, Status):
                    self.status = message
                    if message.state == "full":
                        _log.warning("nothing more is generated: %s", message.note)
                elif isinstance(message, Failed):
                    self.failure = message


class SupervisorGroup:
    """The supervisors of all generation processes of a node, which work on one plan together.

    Each process is told a share of the served images in proportion to what it has made. So each
    pauses at its own part of `generation.max_ahead`, and together they keep to the whole.
    """

    def __init__(self, members: Sequence[Supervisor]) -> None:
        """Take at least one supervisor whose process is not yet started."""
        self._members = members
        self._fresh, self._made_when_told = 0, self._made()

    @property
    def status(self) -> Status:
        """Counts of all together; the state is that of the busiest."""
        return reduce(_joined, [member.status for member in self._members])

    @property
    def restarts(self) -> int:
        """How often processes were restarted, all together."""
        return sum(member.restarts for member in self._members)

    def warm_up(self) -> None:
        """Start all, to import their libraries; call it from the main thread, as `start`."""
        for member in self._members:
            member.warm_up()

    def start(self) -> None:
        """Let all make images; call it from the main thread, whose end also ends the processes."""
        for member in self._members:
            member.start()

    def check(self) -> None:
        """Notice dead or hung processes and restart them in time; cheap enough for every batch.

        Raises:
            UserError: If one failed for a reason that a restart cannot help, or too often.
        """
        for member in self._members:
            member.check()
        if self._made() != self._made_when_told:  # else one may pause for images served long ago
            self.served(self._fresh)

    def served(self, fresh: int) -> None:
        """Tell how many fresh images this run has served so far."""
        self._fresh, self._made_when_told = fresh, self._made()
        parts = divide_served(fresh, self._made_when_told)
        for member, part in zip(self._members, parts, strict=True):
            member.served(part)

    def publish(self, version: str) -> None:
        """Tell that the cache holds newer saliency maps."""
        for member in self._members:
            member.publish(version)

    def publish_losses(self, losses: Sequence[float | None]) -> None:
        """Tell the classifier's loss on each class."""
        for member in self._members:
            member.publish_losses(losses)

    def stop(self) -> None:
        """End all processes at once, since each may take a while."""
        with ThreadPoolExecutor(len(self._members)) as threads:
            list(threads.map(lambda member: member.stop(), self._members))

    def _made(self) -> list[int]:
        return [member.status.generated for member in self._members]


def _joined(one: Status, other: Status) -> Status:
    busiest_first = get_args(State)
    return one.after(other).model_copy(
        update={
            "state": min(one.state, other.state, key=busiest_first.index),
            "note": one.note or other.note,
            "images_per_s": one.images_per_s + other.images_per_s,
        }
    )
