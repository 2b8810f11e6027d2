"""The rank of a process that somebody else's launcher, or nobody, has started."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from online_aug.distributed.world import World, joined, single
from online_aug.errors import UserError


@dataclass(frozen=True)
class Place:
    """The number of this process among those that train together."""

    rank: int
    world_size: int
    local_rank: int
    is_joined: bool
    """Whether torch.distributed joins the ranks, so that they can agree."""

    @property
    def local_world_size(self) -> int | None:
        """Number of ranks on this node if a launcher says so; None for a single rank."""
        if self.world_size == 1:
            return None
        return int(os.environ.get("LOCAL_WORLD_SIZE", self.world_size))

    def world(self, devices: Sequence[str]) -> World:
        """Return this rank among the others; joined ranks all call it.

        Args:
            devices: The training devices of this node.
        """
        device = torch.device(devices[min(self.local_rank, len(devices) - 1)])
        if self.world_size == 1:
            return single(str(device))
        if self.is_joined:
            return joined(device, self.local_rank)
        return World(self.rank, self.world_size, self.local_rank, device)


def own_place(rank: int | None, world_size: int | None) -> Place:
    """Return the place of this process: as given, or as torch.distributed says, or alone.

    A group of this process alone knows no other ranks, so it does not count. Without `LOCAL_RANK`
    in the environment all ranks count as those of one node.

    Raises:
        UserError: If only one of the two numbers is given, or they contradict each other.
    """
    is_joined = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    if (rank is None) != (world_size is None):
        raise UserError(f"rank and world_size must be given together, got {rank} and {world_size}")
    if rank is None or world_size is None:
        rank, world_size = (dist.get_rank(), dist.get_world_size()) if is_joined else (0, 1)
    elif is_joined and (rank, world_size) != (dist.get_rank(), dist.get_world_size()):
        raise UserError(
            f"rank and world_size must be those of torch.distributed ({dist.get_rank()} of "
            f"{dist.get_world_size()}), got {rank} of {world_size}: leave them out"
        )
    if not 0 <= rank < world_size:
        raise UserError(f"rank must be below world_size, got {rank} of {world_size}")
    local_rank = int(os.environ.get("LOCAL_RANK", rank)) if world_size > 1 else 0
    return Place(rank, world_size, local_rank, is_joined)
