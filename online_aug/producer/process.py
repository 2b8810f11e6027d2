"""What trainer and generation process tell each other: typed JSON lines, nothing is unpickled.

The generation process: started by the loader, works through the plan of a run.

`python -m online_aug.generate RUN/config.yaml PLACE`, the trainer on standard input.

The generation process' end of the pipe: messages both ways, and death with its parent.

Where one generation process computes, among those of its run.
"""

import ctypes
import logging
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from cache import CacheError, Store
from online_aug.config.loading import load_config
from online_aug.errors import UserError

if TYPE_CHECKING:
    from online_aug.experiment.experiment import Experiment


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    protocol: Literal[1] = 1


class ServedCount(_Message):
    """Trainer: so many fresh images have been served in this run."""

    type: Literal["served"] = "served"
    fresh: int


class Stop(_Message):
    """Trainer: finish the batch and end."""

    type: Literal["stop"] = "stop"


class NewMaps(_Message):
    """Trainer: the cache holds a newer version of the saliency maps; plan by it from now on."""

    type: Literal["maps"] = "maps"
    version: str


class ClassLosses(_Message):
    """Trainer: the classifier's running loss on each class; what is hard is to be made first."""

    type: Literal["losses"] = "losses"
    losses: tuple[Annotated[float, Field(ge=0, allow_inf_nan=False)] | None, ...]
    """By label; None for a class that was not seen yet."""


State: TypeAlias = Literal["generating", "loading", "paused", "waiting", "full", "finished"]
"""Of a generation process, the busiest first."""


class Status(_Message):
    """Generator: where it stands; sent after every batch and at least every two seconds."""

    type: Literal["status"] = "status"
    state: State
    note: str = ""
    """Why the cache takes no more, where it is full."""
    generated: int = 0
    """Images put into the cache by this process."""
    rejected: int = 0
    rejected_by_reason: dict[str, int] = Field(default_factory=dict)
    """The same, by what was wrong with them."""
    reused: int = 0
    """Requests of the plan that were in the cache already or made by another process."""
    images_per_s: float = 0.0
    """Over the time spent generating, pauses left out."""

    def after(self, earlier: "Status") -> "Status":
        """This, with what an earlier process made and rejected counted in."""
        reasons = Counter(earlier.rejected_by_reason) + Counter(self.rejected_by_reason)
        return self.model_copy(
            update={
                "generated": earlier.generated + self.generated,
                "rejected": earlier.rejected + self.rejected,
                "rejected_by_reason": dict(reasons),
            }
        )


class Alive(_Message):
    """Generator: it runs, whatever it is busy with; sent every `BEAT_S`."""

    type: Literal["alive"] = "alive"


class Failed(_Message):
    """Generator: it ends, and why; `is_final` where a restart cannot help."""

    type: Literal["failed"] = "failed"
    reason: str
    is_final: bool


BEAT_S = 2.0
FromTrainer: TypeAlias = ServedCount | NewMaps | ClassLosses | Stop
ToGenerator = Annotated[FromTrainer, Field(discriminator="type")]
ToTrainer = Annotated[Status | Alive | Failed, Field(discriminator="type")]
_to_generator: TypeAdapter[FromTrainer] = TypeAdapter(ToGenerator)
_to_trainer: TypeAdapter[Status | Alive | Failed] = TypeAdapter(ToTrainer)


def read_by_generator(line: bytes) -> FromTrainer:
    """The trainer's message.

    Raises:
        ValueError: If the line is none.
    """
    return _to_generator.validate_json(line)


def read_by_trainer(line: bytes) -> Status | Alive | Failed | None:
    """The generator's message, or None for a line that is none (a library printed it)."""
    try:
        return _to_trainer.validate_json(line)
    except ValidationError:
        return None


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


class Place(BaseModel):
    """What its command line says, as JSON."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    device: str
    """As the process sees it: a GPU is its only one."""
    threads: int
    number: int = 0
    """Among the processes of this run, from 0."""
    count: int = 1
    share: float = 0.0
    """Of the device's time, left to the classifier that shares it."""


# torch and diffusers, whose import takes seconds, come after this process is tied to the trainer,
# and diffusers only where an image is left to make.

_log = logging.getLogger("online_aug.producer")  # this module runs as __main__


def main(argv: Sequence[str]) -> int:
    """Serve one plan; failures are told to the trainer and end with a status of their own."""
    die_with_parent()
    lifeline = Lifeline()
    logging.basicConfig(format="%(message)s")
    logging.getLogger("online_aug").setLevel(logging.INFO)
    config_path, place = argv
    lifeline.tell(Status(state="loading"))
    try:
        serve(Path(config_path), Place.model_validate_json(place), lifeline)
    except (UserError, CacheError) as error:
        lifeline.tell(Failed(reason=str(error), is_final=True))
        return 2
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        lifeline.tell(Failed(reason=reason, is_final=False))
        raise  # the traceback goes to the log
    return 0


def serve(config_path: Path, place: Place, lifeline: Lifeline) -> None:
    """Make what the cache lacks of a run's plan, until it is whole or the trainer says stop.

    Raises:
        UserError: If model or data cannot be used.
        CacheError: If the cache cannot.
    """
    import torch

    from online_aug.data.sources import load_splits
    from online_aug.experiment.experiment import Experiment
    from online_aug.loader.pool import open_store

    torch.set_num_threads(place.threads)
    config = load_config(config_path)
    experiment = Experiment(config, load_splits(config.data), place.device)
    store = open_store(config, experiment.splits.train)
    _log.info("cache: images are stored as %s", store.codec)
    if _is_whole(experiment, store):
        lifeline.tell(Status(state="finished", reused=len(experiment.plan)))
        return
    from online_aug.distributed.devices import sole_generator
    from online_aug.producer.build import load_generator, share_device, work_of
    from online_aug.producer.service import Service

    with sole_generator(place.device), closing(load_generator(experiment)) as generator:
        sharing = share_device(generator, place.device, place.share)
        work = work_of(experiment, place.number, place.count)
        Service(work, store, sharing, lifeline).run()


def _is_whole(experiment: "Experiment", store: Store) -> bool:
    """Nothing is left to make, and nothing else will be asked for."""
    if experiment.saliency.follows_classifier:
        return False
    from online_aug.producer.request_queue import part_of

    part = part_of(experiment.plan, experiment.config.schedule)
    status = store.status([request.key for request in part])
    return not {"free", "claimed"} & set(status)
