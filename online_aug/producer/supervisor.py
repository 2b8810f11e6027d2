"""The trainer's hold on the generation process: start, listen, restart, stop.

All generation processes of a run as one.
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
from online_aug.producer.process import (
    ClassLosses,
    Failed,
    FromTrainer,
    NewMaps,
    ServedCount,
    State,
    Status,
    Stop,
    read_by_trainer,
)

MAX_RESTARTS = 5
"""In a row of processes that made nothing; one that made an image is always replaced."""
BACK_OFF_S = 1.0
STOP_TIMEOUT_S = 20.0
LAST_WORDS_S = 5.0
SILENT_S = 60.0
"""Without a word for so long a process counts as hung; it speaks every `BEAT_S`."""
MAKE_SURE_S = 5.0
"""More of that silence: perhaps the whole machine slept, and its words are still in the pipe."""
_log = logging.getLogger(__name__)


class Supervisor:
    """One generation process, restarted with back-off when it dies.

    The child holds the reading end of its standard input: when this process ends, however it ends,
    that pipe closes and the child ends too.
    """

    def __init__(self, command: Sequence[str], log: Path, environment: dict[str, str]) -> None:
        """Take the command line of the process and where its messages for people go.

        Args:
            command: Arguments of the Python interpreter.
            log: File its standard error is appended to.
            environment: Variables set for the child beside this process' own, such as its device.
        """
        self._command = [sys.executable, *command]
        self._log_path = log
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None
        self._listener: threading.Thread | None = None
        self._failure: Failed | None = None
        self._lasting: dict[str, NewMaps | ClassLosses] = {}
        self._start_at = 0.0
        self._heard_at = 0.0
        self._silent_since: float | None = None
        self._in_vain = 0
        self._earlier = Status(state="loading")
        self._current = Status(state="loading")
        self.restarts = 0

    @property
    def status(self) -> Status:
        """Where the work stands, counted over all restarts."""
        return self._current.after(self._earlier)

    def start(self) -> None:
        """Start the process; call from the main thread, whose end also ends the child."""
        environment = {k: v for k, v in os.environ.items() if k not in RANK_VARIABLES}
        environment |= self._environment | {"ONLINE_AUG_PARENT": str(os.getpid())}
        with self._log_path.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                start_new_session=True,
            )
        self._listener = threading.Thread(target=self._listen, args=(self._process,), daemon=True)
        self._listener.start()
        self._heard_at = time.monotonic()
        for message in self._lasting.values():
            self._send(message)

    def check(self) -> None:
        """Notice a dead or hung process and restart it in time; cheap enough for every batch.

        Raises:
            UserError: If it failed for a reason that a restart does not mend, or too often.
        """
        process = self._process
        if process is None:
            if time.monotonic() >= self._start_at:
                self.start()
            return
        status = process.poll()
        if status is None and self._is_hung():
            process.kill()  # a stopped process ends by nothing less
            status = process.wait()
            self._failure = Failed(reason=f"no word for {SILENT_S:.0f} s", is_final=False)
        if status is None:
            return
        self._hear_out()
        if status == 0 and self._current.state in {"finished", "full"}:
            return
        self._forget(process)
        reason = self._failure.reason if self._failure else f"exit status {status}"
        if self._failure and self._failure.is_final:
            raise UserError(f"generation process: {reason}")
        self._in_vain = (
            0 if self._current.generated or self._current.rejected else self._in_vain + 1
        )
        if self._in_vain > MAX_RESTARTS:
            raise UserError(
                f"generation process died {self._in_vain} times and made nothing, last: {reason}; "
                f"see {self._log_path}"
            )
        self.restarts += 1
        self._start_at = time.monotonic() + BACK_OFF_S * 2 ** max(0, self._in_vain - 1)
        self._earlier, self._current = self.status, Status(state="loading")
        self._failure = None
        _log.warning("generation process ended (%s), restart %d", reason, self.restarts)

    def served(self, fresh: int) -> None:
        """Tell how many fresh images this run has served so far."""
        self._send(ServedCount(fresh=max(0, fresh - self._earlier.generated)))

    def publish(self, version: str) -> None:
        """Tell that the cache holds a newer version of the maps; told again after a restart."""
        self._tell_for_good(NewMaps(version=version))

    def publish_losses(self, losses: Sequence[float | None]) -> None:
        """Tell the classifier's loss on each class; told again after a restart."""
        self._tell_for_good(ClassLosses(losses=tuple(losses)))

    def stop(self) -> None:
        """End the process: asked first, then terminated, then killed."""
        process, self._process = self._process, None
        if process is None:
            return
        self._write(process, Stop())
        for end in (None, process.terminate, process.kill):
            if end:
                end()
            try:
                process.wait(STOP_TIMEOUT_S if end is None else 5.0)
                break
            except subprocess.TimeoutExpired:
                continue
        self._hear_out()
        self._forget(process)

    def _is_hung(self) -> bool:
        now = time.monotonic()
        if now - self._heard_at < SILENT_S:
            self._silent_since = None
            return False
        self._silent_since = self._silent_since or now
        return now - self._silent_since >= MAKE_SURE_S

    def _tell_for_good(self, message: NewMaps | ClassLosses) -> None:
        self._lasting[message.type] = message
        self._send(message)

    def _send(self, message: FromTrainer) -> None:
        if self._process is not None:
            self._write(self._process, message)

    def _write(self, process: subprocess.Popen[bytes], message: FromTrainer) -> None:
        assert process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended; `check` says so
            process.stdin.write(message.model_dump_json().encode() + b"\n")
            process.stdin.flush()

    def _listen(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                message = read_by_trainer(line)
                self._heard_at = time.monotonic()
                if isinstance(message, Status):
                    self._current = message
                    if message.state == "full":
                        _log.warning("nothing more is generated: %s", message.note)
                elif isinstance(message, Failed):
                    self._failure = message

    def _hear_out(self) -> None:
        """Take in the last words of a process that has ended: they say how."""
        if self._listener:
            self._listener.join(LAST_WORDS_S)

    def _forget(self, process: subprocess.Popen[bytes]) -> None:
        self._process = None
        with suppress(BrokenPipeError):  # closing flushes what it did not live to read
            if process.stdin:
                process.stdin.close()


class Fleet:
    """A supervisor for each generating device; together they work on one plan.

    What one of them is told of images served is its share by what it has made: each pauses when it
    is its own part of `generation.max_ahead` ahead, and together they keep to the whole.
    """

    def __init__(self, members: Sequence[Supervisor]) -> None:
        """Take at least one, not yet started."""
        self._members = members
        self._fresh, self._shared_by = 0, self._made()

    @property
    def status(self) -> Status:
        """Where they stand together; the state is that of the busiest."""
        return reduce(_together, [member.status for member in self._members])

    @property
    def restarts(self) -> int:
        """Of all."""
        return sum(member.restarts for member in self._members)

    def start(self) -> None:
        """Start them; call from the main thread, whose end also ends them."""
        for member in self._members:
            member.start()

    def check(self) -> None:
        """Notice dead or hung ones and restart them in time; cheap enough for every batch.

        Raises:
            UserError: If one failed for a reason that a restart does not mend, or too often.
        """
        for member in self._members:
            member.check()
        if self._made() != self._shared_by:  # else one may pause for what was served long ago
            self.served(self._fresh)

    def served(self, fresh: int) -> None:
        """Tell how many fresh images this run has served so far."""
        self._fresh, self._shared_by = fresh, self._made()
        parts = divide_served(fresh, self._shared_by)
        for member, part in zip(self._members, parts, strict=True):
            member.served(part)

    def publish(self, version: str) -> None:
        """Tell that the cache holds a newer version of the maps."""
        for member in self._members:
            member.publish(version)

    def publish_losses(self, losses: Sequence[float | None]) -> None:
        """Tell the classifier's loss on each class."""
        for member in self._members:
            member.publish_losses(losses)

    def stop(self) -> None:
        """End them, all at once: each may have to be waited for."""
        with ThreadPoolExecutor(len(self._members)) as threads:
            list(threads.map(lambda member: member.stop(), self._members))

    def _made(self) -> list[int]:
        return [member.status.generated for member in self._members]


def _together(one: Status, other: Status) -> Status:
    busy = get_args(State)
    return one.after(other).model_copy(
        update={
            "state": min(one.state, other.state, key=busy.index),
            "note": one.note or other.note,
            "images_per_s": one.images_per_s + other.images_per_s,
        }
    )
