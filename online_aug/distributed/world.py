"""The ranks of a run: starting DeepSpeed, exchanging small messages, failing together."""

import hashlib
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from online_aug.distributed.identity import LAUNCHER_S, Identity, identify
from online_aug.distributed.rendezvous import meet
from online_aug.errors import RunError, UserError, one_line


@dataclass(frozen=True)
class World:
    """The place of this process among the ranks."""

    rank: int
    world_size: int
    local_rank: int
    device: torch.device
    control: Any = None
    """The process group for small messages on the host; None for a single rank."""
    local_ranks: tuple[int, ...] = ()
    """The local rank of every rank; empty if all are on one node."""

    @property
    def is_first(self) -> bool:
        """Whether this rank writes what is written once in a run."""
        return self.rank == 0

    @property
    def is_first_of_node(self) -> bool:
        """Whether this rank owns what each node has once: generation processes and cache."""
        return self.local_rank == 0

    @property
    def nodes_by_rank(self) -> tuple[int, ...]:
        """The node of every rank; two launchers on one machine are two nodes."""
        if not self.local_ranks:
            return (0,) * self.world_size
        return tuple(nodes - 1 for nodes in accumulate(n == 0 for n in self.local_ranks))

    @property
    def nodes(self) -> int:
        """Number of nodes."""
        return self.nodes_by_rank[-1] + 1

    @property
    def node(self) -> int:
        """The node of this rank, from 0."""
        return self.nodes_by_rank[self.rank]

    @property
    def local_world_size(self) -> int:
        """Number of ranks of this node."""
        return self.nodes_by_rank.count(self.node)


def single(device: str) -> World:
    """Return the world of a process without other ranks."""
    return World(0, 1, 0, torch.device(device))


def rank_device(devices: Sequence[str]) -> str:
    """Return the device of this process among the planned training devices.

    Under a launcher that is not ours, local rank n has GPU n as the launcher numbers them.
    """
    me = identify()
    if not me.is_launched or me.is_ours:
        return devices[me.local_rank]
    return f"cuda:{me.local_rank}" if devices[0].startswith("cuda") else "cpu"


def start_distributed(device: str) -> World:
    """Start DeepSpeed in this rank; once a process, before anything else imports it.

    Under a launcher the rank joins the others; without one it is alone and opens no port. None of
    DeepSpeed's own operators is compiled: there may be no compiler, and a first compilation that
    is killed leaves a lock on which every later run waits.

    Args:
        device: `cpu`, or `cuda` with an index as this process sees its GPUs.

    Raises:
        UserError: If the launcher set only some of its variables, or did not number the ranks node
            by node.
    """
    place = torch.device(device)
    me = identify()
    if place.type == "cuda":
        place = torch.device("cuda", me.local_rank if place.index is None else place.index)
        torch.cuda.set_device(place)
    with set_environment(DS_ACCELERATOR=place.type):
        import deepspeed.accelerator
    chosen = deepspeed.accelerator.get_accelerator().device_name()
    if chosen != place.type:
        raise RuntimeError(f"deepspeed was imported too early and took {chosen}, not {place.type}")
    _refuse_to_compile()
    _start_group(place, me)
    deepspeed.comm.init_distributed(auto_mpi_discovery=False, verbose=False)
    if me.world_size == 1:
        return World(me.rank, 1, me.local_rank, place)
    return joined(place, me.local_rank)


def joined(device: torch.device, local_rank: int) -> World:
    """Return the place of this rank in a started process group of several; all ranks call it.

    Raises:
        UserError: If the ranks are not numbered node by node.
    """
    control = dist.new_group(backend="gloo")
    local_ranks = _local_ranks(local_rank, control)
    return World(dist.get_rank(), dist.get_world_size(), local_rank, device, control, local_ranks)


def barrier(world: World) -> None:
    """Wait until every rank has called this."""
    agree(world, 0)


def agree(world: World, value: int) -> int:
    """Return on all ranks the largest value that any of them passes, such as a signal number.

    A rank that cannot ask the others agrees with itself.
    """
    if world.control is None:
        return value
    largest = torch.tensor([value])
    dist.all_reduce(largest, dist.ReduceOp.MAX, group=world.control)
    return int(largest)


def sum_gradients(world: World, parameters: Sequence[nn.Parameter]) -> None:
    """Replace every gradient by its sum over all ranks; every rank must have the same ones."""
    if world.world_size == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    together = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(together)
    sizes = [gradient.numel() for gradient in gradients]
    for gradient, added in zip(gradients, together.split(sizes), strict=True):
        gradient.copy_(added.view_as(gradient))


def total(world: World, values: Sequence[float]) -> list[float]:
    """Return the sum over the ranks of each value, in double precision."""
    sums = torch.tensor(values, dtype=torch.float64)
    if world.world_size > 1:
        dist.all_reduce(sums, group=world.control)
    return [float(value) for value in sums]


def is_same_everywhere(world: World, values: Iterable[bytes]) -> bool:
    """Return whether all ranks pass the same bytes in the same order; equal on all ranks."""
    digest = hashlib.blake2b(digest_size=6)
    for value in values:
        digest.update(value)
    number = int.from_bytes(digest.digest())
    return agree(world, number) == -agree(world, -number)


def share(world: World, content: bytes) -> bytes:
    """Return on all ranks the content that the first rank passes."""
    if world.world_size == 1:
        return content
    size = torch.tensor([len(content)])
    dist.broadcast(size, 0, group=world.control)
    shared = torch.zeros(int(size), dtype=torch.uint8)
    if world.is_first:
        shared = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    dist.broadcast(shared, 0, group=world.control)
    return shared.numpy().tobytes()


def gather(world: World, content: bytes) -> list[bytes]:
    """Return on all ranks the contents that they pass, by rank."""
    if world.world_size == 1:
        return [content]
    sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(world.world_size)]
    dist.all_gather(sizes, torch.tensor([len(content)]), group=world.control)
    longest = max(int(size) for size in sizes)
    own = torch.frombuffer(bytearray(content.ljust(longest + 1)), dtype=torch.uint8)
    found = [torch.zeros_like(own) for _ in sizes]
    dist.all_gather(found, own, group=world.control)
    pairs = zip(found, sizes, strict=True)
    return [part.numpy().tobytes()[: int(size)] for part, size in pairs]


def gather_counts(world: World, counts: Mapping[int, int]) -> Counter[int]:
    """Return on all ranks the sum over the ranks of the counts of some numbers."""
    pairs = np.array([*counts.items()], np.int64).reshape(-1, 2)
    found: Counter[int] = Counter()
    for content in gather(world, pairs.tobytes()):
        for number, count in np.frombuffer(content, np.int64).reshape(-1, 2).tolist():
            found[number] += count
    return found


def end_distributed() -> None:
    """Leave the process group; this process cannot train afterwards."""
    if dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def set_environment(**values: str) -> Iterator[None]:
    """Set environment variables while the block runs: libraries read them, children must not."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _local_ranks(local_rank: int, control: Any) -> tuple[int, ...]:
    found = [torch.zeros(1, dtype=torch.int64) for _ in range(dist.get_world_size())]
    dist.all_gather(found, torch.tensor([local_rank]), group=control)
    numbers = tuple(int(number) for number in found)
    if any(later not in (0, former + 1) for former, later in pairwise((-1, *numbers))):
        raise UserError(
            "a launcher must number the ranks node by node, each node's local ranks from 0, "
            f"got local ranks {', '.join(map(str, numbers))}"
        )
    return numbers


def _refuse_to_compile() -> None:
    # DeepSpeed builds an operator only if this table calls it compatible. It makes the table on
    # first use by running compilers; an empty one set beforehand avoids that.
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__ = {}


def _start_group(device: torch.device, me: Identity) -> None:
    backend = "nccl" if device.type == "cuda" else "gloo"
    if not me.is_launched:
        store = dist.HashStore()  # type: ignore[attr-defined]  # public, but not in __all__
        dist.init_process_group(backend, store=store, rank=0, world_size=1)
        return
    # NCCL otherwise guesses the GPU from the rank.
    bound = device if backend == "nccl" and me.world_size > 1 else None
    met = dist.PrefixStore("default_pg", meet(me))  # type: ignore[attr-defined]  # as above
    dist.init_process_group(
        backend, store=met, rank=me.rank, world_size=me.world_size, device_id=bound
    )


FAILURE_FILE = ".failure"
"""The file of the run directory, which all nodes share, with the first rank to fail and why."""
_FROM_OTHERS = ("gloo", "NCCL", "onnection", "Broken pipe")
"""Words in torch's errors when another rank is gone."""


@contextmanager
def failing_together(world: World, run_directory: Path) -> Iterator[None]:
    """Note why this rank fails; if another failed first, fail with its reason.

    All ranks must enter it. A rank that lost another waits first: if the other one is on the same
    node, their launcher ends this rank before it says anything, so each node reports once.

    Raises:
        RunError: If another rank ended early.
    """
    place = run_directory / FAILURE_FILE
    if world.is_first:
        place.unlink(missing_ok=True)
    barrier(world)
    try:
        yield
    except Exception as error:
        if world.world_size == 1:
            raise
        if not _is_from_others(error):
            _note(place, f"rank {world.rank} ended the run: {one_line(error)}")
            raise
        time.sleep(LAUNCHER_S)
        raise RunError(_noted(place)) from None


def _is_from_others(error: Exception) -> bool:
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _FROM_OTHERS)


def _note(place: Path, text: str) -> None:
    try:
        with place.open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except (
        OSError
    ):  # another rank was first, or nothing can be written: the error is still shown here
        return


def _noted(place: Path) -> str:
    try:
        return place.read_text(encoding="utf-8")
    except OSError:
        return "another rank ended the run without a word; it may have been killed"
