"""Which image fills which slot: real, fresh or cached, decided in the main process of each rank."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from online_aug.config import MixingConfig
from online_aug.dataloader.slots import Kind, Order, Slot
from online_aug.dataloader.supply import Supply
from online_aug.seeding import numpy_rng


class MixingSampler:
    """Batches of slots for one rank; a `batch_sampler` for the DataLoader."""

    def __init__(
        self,
        order: Order,
        supply: Supply,
        mixing: MixingConfig,
        wait_for: Callable[[int], bool],
        *,
        rank: int,
        world_size: int,
    ) -> None:
        """Serve this rank's part of every global batch.

        Args:
            order: The global batches.
            supply: The generated images this rank may serve.
            mixing: Share of synthetic samples, and what happens where none is ready.
            rank: Of this process.
            world_size: Number of ranks.
            wait_for: Blocks until the request of this number is in the cache; False if it was
                rejected. Used with `starvation: wait` only.
        """
        self._order = order
        self.supply = supply
        self._mixing = mixing
        self._wait_for = wait_for
        self._size = order.batch_size // world_size
        self._part = slice(rank * self._size, (rank + 1) * self._size)
        self.rank, self.world_size = rank, world_size
        self._first, self._num_requests = 0, len(supply)
        self._since_epoch = 0
        self.epoch = self.first_step = 0
        self.planned: deque[list[Slot]] = deque()
        """Batches handed to the DataLoader and not yet to the training loop."""

    def extend(self, keys: Sequence[bytes], *, oldest: int, epoch: int) -> None:
        """Go on with a newer plan from an epoch's start; see `Supply.extend`."""
        self._first, self._num_requests = len(self.supply), len(keys)
        self._since_epoch = epoch
        self.supply.extend(keys, oldest=oldest)

    def __len__(self) -> int:
        return self._order.steps - self.first_step

    def __iter__(self) -> Iterator[list[Slot]]:
        self.planned.clear()
        indices = self._order.indices(self.epoch)
        drawn = self._synthetic_before(self.epoch, self.first_step)
        for step in range(self.first_step, self._order.steps):
            batch, drawn = self._batch(step, indices, drawn)
            self.planned.append(batch)
            yield batch

    def _batch(self, step: int, indices: np.ndarray, drawn: int) -> tuple[list[Slot], int]:
        wanted = self._order.is_synthetic(self.epoch, step, self._mixing.synthetic_probability)
        turns = drawn + np.cumsum(wanted) - wanted
        rng = numpy_rng("choose", self._order.seed, self.epoch, step, self.rank)
        self.supply.refresh()
        first = step * self._order.batch_size
        batch = []
        for place in range(self._order.batch_size)[self._part]:
            kind, number = (Kind.REAL, -1)
            if wanted[place]:
                kind, number = self._synthetic(int(turns[place]), rng)
            position = first + place
            batch.append(Slot(self.epoch, position, int(indices[position]), kind, number))
        return batch, drawn + int(wanted.sum())

    def _synthetic(self, turn: int, rng: np.random.Generator) -> tuple[Kind, int]:
        """Fill one slot; with `wait`, the turn alone decides which request it gets."""
        if self._mixing.starvation == "substitute":
            return self.supply.take(rng) or (Kind.STARVED, -1)
        if not self._num_requests:
            return Kind.STARVED, -1
        times, place = divmod(turn, self._num_requests)
        number = self._first + place
        is_used_up = self.supply.limit is not None and times >= self.supply.limit
        if is_used_up or not self._wait_for(number):
            return Kind.STARVED, -1
        self.supply.refresh()
        return self.supply.take_number(number)

    def _synthetic_before(self, epoch: int, step: int) -> int:
        """Synthetic slots of all ranks before this step, since the newest plan came."""
        if self._mixing.starvation == "substitute":
            return 0
        steps = [(e, s) for e in range(self._since_epoch, epoch) for s in range(self._order.steps)]
        steps += [(epoch, s) for s in range(step)]
        share = self._mixing.synthetic_probability
        return sum(int(self._order.is_synthetic(e, s, share).sum()) for e, s in steps)
