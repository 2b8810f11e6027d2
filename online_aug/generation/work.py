"""What the generation loop works on, with what, and for whom."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from online_aug.generation.image_generator import Finished
from online_aug.generation.messages import Status
from online_aug.generation.order import Stripe, Weights
from online_aug.generation.starting import Prepare
from online_aug.records import GenerationRequest


class Generates(Protocol):
    """An image generator: takes requests in, gives images back in any order."""

    @property
    def room(self) -> int:
        """How many more requests keep it busy."""
        ...

    def submit(self, requests: Sequence[GenerationRequest], prepare: Prepare) -> None:
        """Take requests in, and what prepares them."""
        ...

    def step(self) -> list[Finished]:
        """Go on a little; gives what is finished by then."""
        ...

    def drop(self) -> None:
        """Forget what is not finished."""
        ...


class Trainer(Protocol):
    """Whom the images are for."""

    @property
    def served(self) -> int:
        """Fresh images served in this run so far."""
        ...

    @property
    def is_stopping(self) -> bool:
        """The work is to end, however much is left."""
        ...

    @property
    def saliency_version(self) -> str | None:
        """The newest maps by the classifier being trained; None before the first or without."""
        ...

    @property
    def class_losses(self) -> Sequence[float | None] | None:
        """The classifier's newest loss on each class; None before the first."""
        ...

    def tell(self, status: Status) -> None:
        """Send where the work stands."""
        ...


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is to be made, and from what."""

    plan: Sequence[GenerationRequest]
    """What is known at the start."""
    plan_of: Callable[[str], Sequence[GenerationRequest]] | None
    """The plan by a version of the saliency maps; None where none but the first will come."""
    prepare: Prepare
    """Starting images of some requests of one plan, at the generator's resolution."""
    refusal: Callable[[GenerationRequest], str | None]
    """Why a request cannot be prepared, None where it can."""
    max_ahead: int | None
    """Images not yet served at which to pause; None never pauses."""
    stripe: Stripe | None = None
    """What this process begins with; the rest comes after it."""
    weights: Weights | None = None
    """Of classes or images at the start; None keeps the order of the plan."""
    follows_losses: bool = False
    """The weights then follow the classifier's losses."""
