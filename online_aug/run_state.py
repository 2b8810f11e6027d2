"""What a run remembers: from launch to launch, and from step to step of the epoch in progress."""

import time
from dataclasses import dataclass, field
from typing import Any, Self

from jaxtyping import Float
from torch import Tensor

from online_aug.records import Served


@dataclass(kw_only=True)
class RunState:
    """What a checkpoint keeps of the run beside weights, loader and epoch."""

    wall_s: float = 0.0
    """Of earlier launches."""
    first_step_s: float | None = None
    best_top1: float = -1.0
    best_epoch: int = -1
    generated: int = 0
    """By generation processes of earlier launches."""
    rejected: int = 0
    """Likewise."""
    restarts: int = 0
    """Likewise."""
    reported: tuple[int, int] = (0, 0)
    """Generated and rejected when the last epoch was reported."""


@dataclass(kw_only=True)
class EpochTally:
    """Sums over the epoch in progress, on one rank."""

    served: Served = Served()
    loss: Float[Tensor, ""] | float = 0.0
    steps: int = 0
    wait_s: float = 0.0
    """Spent waiting for batches."""
    earlier_s: float = 0.0
    """Training time of this epoch in earlier launches."""
    started: float = field(default_factory=time.monotonic)

    @property
    def images(self) -> int:
        """Images trained on."""
        return sum(vars(self.served).values())

    @property
    def train_s(self) -> float:
        """Training time so far."""
        return self.earlier_s + time.monotonic() - self.started

    @property
    def mean_loss(self) -> float:
        """Over the steps, 0 without one; waits for the device."""
        return float(self.loss) / max(1, self.steps)

    def add(self, loss: Float[Tensor, ""], served: Served) -> None:
        """Count one step."""
        self.loss = self.loss + loss
        self.served += served
        self.steps += 1

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, for a checkpoint in the middle of the epoch."""
        return {
            "served": vars(self.served).copy(),
            "loss": float(self.loss),
            "steps": self.steps,
            "wait_s": self.wait_s,
            "earlier_s": self.train_s,
        }

    @classmethod
    def resumed(cls, state: dict[str, Any]) -> Self:
        """Go on with the sums of a checkpoint, the clock started anew."""
        return cls(**{**state, "served": Served(**state["served"])})
