"""What a run remembers: from launch to launch, and from step to step of the epoch in progress."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from jaxtyping import Float
from torch import Tensor

from online_aug.distributed.world import World
from online_aug.request import Counts


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
    """Generated and rejected, by all nodes, when the last epoch was reported."""


_COUNTED = ("generated", "rejected", "restarts")
"""What each node's first rank counts for its own generation processes."""

_NEW_CACHE = {"position": 0, "position_at_start": 0}
"""Of a node that was not there before."""


def share_out(states: Sequence[dict[str, Any]], world: World) -> dict[str, Any]:
    """What a rank goes on with: its own, or its part where ranks on other nodes have saved.

    The global batches are the same. Counts are summed and dealt out again, so that those of all
    ranks still add up; so the limit on how often an image is served is kept by all together. Each
    node has its own cache: with as many nodes as before, a node's counts stay its own.

    Args:
        states: As the ranks saved them, in order.
        world: This rank among those of now.
    """
    if tuple(state["node"] for state in states) == world.nodes_by_rank:
        return states[world.rank]
    shared, rank, ranks = list(states), world.rank, world.world_size
    neighbours = [state for state in states if state["node"] == world.node]
    if len({state["node"] for state in states}) == world.nodes:
        shared, rank, ranks = neighbours, world.local_rank, world.local_world_size
    places = neighbours[0]["loader"] if neighbours else _NEW_CACHE
    first, loaders = shared[0], [state["loader"] for state in shared]
    times = sum((Counter(loader["times_sampled"]) for loader in loaders), Counter[int]())
    dealt = {number: _part(count, rank, ranks) for number, count in times.items()}
    totals = _dealt([loader["totals"] for loader in loaders], rank, ranks)
    served = _dealt([state["tally"]["served"] for state in shared], rank, ranks)
    return {
        **first,
        "node": world.node,
        "run": _made_by([state["run"] for state in shared], is_first=rank == 0),
        "tally": {**first["tally"], "served": served, "loss": _mean_loss(states)},
        "loader": {
            **first["loader"],
            **{name: places[name] for name in _NEW_CACHE},
            "times_sampled": {number: count for number, count in dealt.items() if count},
            "totals": totals,
        },
    }


def _mean_loss(states: Sequence[dict[str, Any]]) -> float:
    return sum(float(state["tally"]["loss"]) for state in states) / len(states)


def _made_by(runs: Sequence[dict[str, Any]], *, is_first: bool) -> dict[str, Any]:
    """What the generation processes did is counted by the one rank that goes on with them."""
    return {**runs[0], **{name: is_first * sum(run[name] for run in runs) for name in _COUNTED}}


def _dealt(counts: Sequence[dict[str, int]], rank: int, ranks: int) -> dict[str, int]:
    return {name: _part(sum(each[name] for each in counts), rank, ranks) for name in counts[0]}


def _part(count: int, rank: int, ranks: int) -> int:
    return count // ranks + (rank < count % ranks)


@dataclass(kw_only=True)
class EpochTally:
    """Sums over the epoch in progress, on one rank."""

    served: Counts = Counts()
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

    def add(self, loss: Float[Tensor, ""], served: Counts) -> None:
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
        return cls(**{**state, "served": Counts(**state["served"])})
