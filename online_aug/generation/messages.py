"""What trainer and generation process tell each other: typed JSON lines, nothing is unpickled."""

from collections import Counter
from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError


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
