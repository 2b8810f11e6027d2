"""Which image fills which slot: real, fresh or cached, decided in the main process of each rank."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from online_aug.config_mixing import MixingConfig
from online_aug.dataloader.rate_limiter import RateLimiter
from online_aug.dataloader.slots import Kind, Order, Slot
from online_aug.dataloader.supply import Supply
from online_aug.records import Servable
from online_aug.seeding import numpy_rng


class MixingSampler:
    """Batches of slots for one rank; a `batch_sampler` for the DataLoader."""

    is_replay = False
    """Whether a slot that is not filled as planned is an error."""

    def __init__(
        self,
        order: Order,
        supply: Supply,
        mixing: MixingConfig | None = None,
        wait_for: Callable[[int], bool] = lambda number: True,
        *,
        digests: Sequence[str] = (),
        limiter: RateLimiter | None = None,
    ) -> None:
        """Serve the part of every global batch that belongs to the supply's rank.

        Args:
            order: The global batches.
            supply: The generated images this rank may serve.
            mixing: From what a synthetic sample is drawn, and what happens where none is ready.
            wait_for: Blocks until the request of this number is in the cache; False if it was
                rejected. Used with `starvation: wait` only.
            digests: Of the real images; not needed where samples are drawn from the whole pool.
            limiter: Keeps how often an image is served; None for as often as it is drawn.
        """
        self._order = order
        self.supply = supply
        self._mixing = mixing or MixingConfig()
        self._wait_for = wait_for
        self._digests = digests
        self.limiter = limiter
        self.rank, self.world_size = supply.rank, supply.world_size
        size = order.batch_size // self.world_size
        self._part = slice(self.rank * size, (self.rank + 1) * size)
        self._first, self._num_requests = 0, len(supply)
        self._since_epoch = 0
        self.epoch = self.first_step = 0
        self.planned: deque[list[Slot]] = deque()
        """Batches handed to the DataLoader and not yet to the training loop."""

    def extend(self, plan: Sequence[Servable], *, oldest: int, epoch: int) -> None:
        """Go on with a newer plan from an epoch's start; see `Supply.extend`."""
        self._first, self._num_requests = len(self.supply), len(plan)
        self._since_epoch = epoch
        self.supply.extend(plan, oldest=oldest)

    def __len__(self) -> int:
        return self._order.steps - self.first_step

    def __iter__(self) -> Iterator[list[Slot]]:
        self.planned.clear()
        fill = self._filler()
        for step in range(self.first_step, self._order.steps):
            batch = fill(step)
            self.planned.append(batch)
            yield batch

    def _filler(self) -> Callable[[int], list[Slot]]:
        """What decides the slots of each step of this epoch."""
        indices = self._order.indices(self.epoch)
        is_synthetic = self._order.is_synthetic(self.epoch)
        turns = self._turns_before(self.epoch) + np.cumsum(is_synthetic) - is_synthetic

        def fill(step: int) -> list[Slot]:
            rng = numpy_rng("choose", self._order.seed, self.epoch, step, self.rank)
            self.supply.refresh()
            batch = []
            for position in self._positions(step):
                index, (kind, number) = int(indices[position]), (Kind.REAL, -1)
                if is_synthetic[position]:
                    kind, number = self._synthetic(position, index, int(turns[position]), rng)
                batch.append(Slot(self.epoch, position, index, kind, number))
            return batch

        return fill

    def _positions(self, step: int) -> range:
        """Of this rank's slots in the epoch's global order."""
        first = step * self._order.batch_size
        return range(first, first + self._order.batch_size)[self._part]

    def _synthetic(
        self, position: int, index: int, turn: int, rng: np.random.Generator
    ) -> tuple[Kind, int]:
        """Fill one slot; with `wait`, what it gets does not depend on what is there."""
        variants = None
        if self._mixing.policy != "global":
            variants = self.supply.variants(self._digests[index])
        if self._mixing.starvation == "substitute":
            taken = self.supply.take(rng, variants) if self._may_sample() else None
            return taken or (Kind.STARVED, -1)
        number = self._in_turn(turn) if variants is None else self._drawn(position, variants)
        if number is None or not self._wait_for(number):
            return Kind.STARVED, -1
        self.supply.refresh()
        return self.supply.take_number(number)

    def _may_sample(self) -> bool:
        """Each rank takes its own samples for as many as those of the others."""
        ranks, supply = self.supply.sharers, self.supply
        return self.limiter is None or self.limiter.can_sample(
            supply.inserts, supply.samples * ranks, wanted=ranks
        )

    def _in_turn(self, turn: int) -> int | None:
        """The plan over and over again, as often as allowed; None after that."""
        times, place = divmod(turn, max(1, self._num_requests))
        is_used_up = self.supply.limit is not None and times >= self.supply.limit
        return None if is_used_up or not self._num_requests else self._first + place

    def _drawn(self, position: int, variants: Sequence[int]) -> int | None:
        """Any of an image's own variants of the newest plan."""
        newest = [number for number in variants if number >= self._first]
        rng = numpy_rng("variant", self._order.seed, self.epoch, position)
        return newest[int(rng.integers(len(newest)))] if newest else None

    def _turns_before(self, epoch: int) -> int:
        """Synthetic slots of all ranks in earlier epochs, since the newest plan came."""
        if self._mixing.starvation == "substitute" or self._mixing.policy != "global":
            return 0
        epochs = range(self._since_epoch, epoch)
        return sum(int(self._order.is_synthetic(earlier).sum()) for earlier in epochs)
