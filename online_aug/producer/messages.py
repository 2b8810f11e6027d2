"""The messages between trainer and generation process, and the latter's end of the pipe.

Each message is one line of JSON and is checked when it is read; nothing is unpickled.
"""

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Literal, Protocol, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from online_aug.processes import die_with_parent

PARENT_VARIABLE = "ONLINE_AUG_PARENT"
"""Environment variable that holds the process id of the trainer."""
ALIVE_EVERY_S = 2.0
"""Seconds between two signs of life of a generation process."""
State: TypeAlias = Literal["generating", "loading", "paused", "waiting", "full", "finished"]
"""States of a generation process, the busiest first."""


class Placement(BaseModel):
    """The device and threads of one generation process; its command line has them as JSON."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    device: str
    """Device as this process sees it: a GPU is its only one."""
    threads: int
    number: int = 0
    """Number of this process among those of the run on this machine, from 0."""
    count: int = 1
    """How many generation processes the run has on this machine."""
    share: float = 0.0
    """Part of the device's time that is left to the classifier that shares it."""


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    protocol: Literal[1] = 1


class Begin(_Message):
    """From the trainer: fine-tuned model and foregrounds are there, the images can be made."""

    type: Literal["begin"] = "begin"


class ServedCount(_Message):
    """From the trainer: how many fresh images this run has served."""

    type: Literal["served"] = "served"
    fresh: int


class NewMaps(_Message):
    """From the trainer: the cache holds newer saliency maps; plan with these from now on."""

    type: Literal["maps"] = "maps"
    version: str


class ClassLosses(_Message):
    """From the trainer: the classifier's running loss on each class, to make hard classes first."""

    type: Literal["losses"] = "losses"
    losses: tuple[Annotated[float, Field(ge=0, allow_inf_nan=False)] | None, ...]
    """Mean loss by label; None for a class that was not seen yet."""


class Stop(_Message):
    """From the trainer: finish the current batch and end."""

    type: Literal["stop"] = "stop"


class Status(_Message):
    """From the generation process: its state and counts, sent at least after every batch."""

    type: Literal["status"] = "status"
    state: State
    note: str = ""
    """Why the cache takes no more images, if the state is `full`."""
    generated: int = 0
    """Images that this process has put into the cache."""
    rejected: int = 0
    rejected_by_reason: dict[str, int] = Field(default_factory=dict)
    """Rejected images by the reason for it."""
    reused: int = 0
    """Requests of the plan that were in the cache already or were made by another process."""
    images_per_s: float = 0.0
    """Speed over the time spent generating; pauses do not count."""
    generating_s: float = 0.0
    """Time spent generating."""
    paused_s: float = 0.0
    """Time in which back-pressure let it wait for the trainer."""

    def after(self, earlier: "Status") -> "Status":
        """Return this status with images, rejections and times of an earlier process added."""
        reasons = Counter(earlier.rejected_by_reason) + Counter(self.rejected_by_reason)
        return self.model_copy(
            update={
                "generated": earlier.generated + self.generated,
                "rejected": earlier.rejected + self.rejected,
                "rejected_by_reason": dict(reasons),
                "generating_s": earlier.generating_s + self.generating_s,
                "paused_s": earlier.paused_s + self.paused_s,
            }
        )


class Alive(_Message):
    """From the generation process: a sign of life every `ALIVE_EVERY_S`, whatever it computes."""

    type: Literal["alive"] = "alive"


class Failed(_Message):
    """From the generation process: the reason why it ends; `is_final` if a restart cannot help."""

    type: Literal["failed"] = "failed"
    reason: str
    is_final: bool


FromTrainer: TypeAlias = Begin | ServedCount | NewMaps | ClassLosses | Stop
FromGenerator: TypeAlias = Status | Alive | Failed
_from_trainer: TypeAdapter[FromTrainer] = TypeAdapter(
    Annotated[FromTrainer, Field(discriminator="type")]
)
_from_generator: TypeAdapter[FromGenerator] = TypeAdapter(
    Annotated[FromGenerator, Field(discriminator="type")]
)


def to_line(message: FromTrainer | FromGenerator) -> bytes:
    """Encode a message as the line that goes through the pipe."""
    return message.model_dump_json().encode() + b"\n"


def read_from_trainer(line: bytes) -> FromTrainer:
    """Decode a line that the trainer has written.

    Raises:
        ValueError: If it is not a message.
    """
    return _from_trainer.validate_json(line)


def read_from_generator(line: bytes) -> FromGenerator | None:
    """Decode a line that the generation process has written; None if a library printed it."""
    try:
        return _from_generator.validate_json(line)
    except ValidationError:
        return None


class Trainer(Protocol):
    """The recipient of the images, as the generation loop sees it."""

    @property
    def served(self) -> int:
        """How many fresh images this run has served so far."""
        ...

    @property
    def is_stopping(self) -> bool:
        """Whether the work is to end, however much is left."""
        ...

    @property
    def saliency_version(self) -> str | None:
        """Version of the newest saliency maps of the classifier in training; None before those."""
        ...

    @property
    def class_losses(self) -> Sequence[float | None] | None:
        """The classifier's newest loss on each class; None before the first."""
        ...

    def tell(self, status: Status) -> None:
        """Take note of the state of the work."""
        ...


def tie_to_parent() -> None:
    """End this process when the trainer ends, however that happens, and ignore Ctrl-C.

    Ctrl-C is for the trainer, which then tells this process to stop.
    """
    die_with_parent(signal.SIGKILL)
    expected = os.environ.get(PARENT_VARIABLE)
    if expected is not None and os.getppid() != int(expected):
        os._exit(1)  # it ended before the kernel was asked
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class TrainerPipe:
    """The pipe to a trainer in another process; ends this process if the trainer is gone.

    Messages are read from standard input; the latest are attributes, which the loop polls.
    """

    def __init__(self) -> None:
        """Start listening; standard output carries messages from now on, prints go to the log."""
        self.served = 0
        self.saliency_version: str | None = None
        self.class_losses: tuple[float | None, ...] | None = None
        self.is_stopping = False
        self._is_heard = threading.Event()
        self._out = os.fdopen(os.dup(1), "wb")
        os.dup2(2, 1)  # what libraries print must not mix with messages
        self._lock = threading.Lock()
        threading.Thread(target=self._listen, daemon=True).start()
        threading.Thread(target=self._give_signs_of_life, daemon=True).start()

    @property
    def has_begun(self) -> bool:
        """Whether the images are to be made, or nothing any more."""
        return self._is_heard.is_set()

    def wait_to_begin(self) -> bool:
        """Wait until the images can be made; False if the trainer stops first."""
        self._is_heard.wait()
        return not self.is_stopping

    def tell(self, message: FromGenerator) -> None:
        """Send a message; end this process if nobody reads it."""
        try:
            with self._lock:
                self._out.write(to_line(message))
                self._out.flush()
        except BrokenPipeError:
            os._exit(1)

    def _give_signs_of_life(self) -> None:
        while True:
            time.sleep(ALIVE_EVERY_S)
            self.tell(Alive())

    def _listen(self) -> None:
        pending = b""
        while received := os.read(0, 65536):  # Python's own buffered reader may hang at exit
            *lines, pending = (pending + received).split(b"\n")
            for line in lines:
                self._receive(read_from_trainer(line))
        if not self.is_stopping:
            os._exit(1)  # the trainer died; the cache is safe at any moment

    def _receive(self, message: FromTrainer) -> None:
        match message:
            case Begin():
                self._is_heard.set()
            case ServedCount(fresh=fresh):
                self.served = fresh
            case NewMaps(version=version):
                self.saliency_version = version
            case ClassLosses(losses=losses):
                self.class_losses = losses
            case Stop():
                self.is_stopping = True
                self._is_heard.set()
