"""Which image fills which slot: real, fresh or cached, decided in the main process of each rank."""

import math
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from cache import Store
from online_aug.config import MixingConfig
from online_aug.seeding import numpy_rng


class Kind(IntEnum):
    """How a slot was filled."""

    REAL = 0
    FRESH = 1
    CACHED = 2
    STARVED = 3
    """Planned synthetic, but nothing was ready: the real image."""


@dataclass(frozen=True, slots=True)
class Slot:
    """One sample of a batch."""

    epoch: int
    position: int
    """In the epoch's global order; seeds the transform."""
    index: int
    """The real image at this position."""
    kind: Kind
    number: int
    """Place of the request in the plan, -1 for a real image."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """What decides the global batches of every epoch, whatever the number of ranks."""

    num_images: int
    batch_size: int
    """Over all ranks."""
    repeats: int
    seed: int

    @property
    def steps(self) -> int:
        """Batches an epoch; the last images that fill none are left out, they change each epoch."""
        return max(1, self.num_images * self.repeats // self.batch_size)

    def indices(self, epoch: int) -> np.ndarray:
        """Real image of each position: every image once a repeat, `steps * batch_size` in all."""
        length = self.steps * self.batch_size
        passes = math.ceil(length / self.num_images)
        orders = [
            numpy_rng("order", self.seed, epoch, number).permutation(self.num_images)
            for number in range(passes)
        ]
        return np.concatenate(orders)[:length]

    def is_synthetic(self, epoch: int, step: int, probability: float) -> np.ndarray:
        """Which slots of one global batch ask for a synthetic sample."""
        draws = numpy_rng("mix", self.seed, epoch, step).random(self.batch_size)
        return np.asarray(draws < probability)


class Supply:
    """The generated images one rank may serve: fresh ones in order, the others at random.

    Fresh is what was put into the cache in this run and not served in it; record `n` of the log is
    fresh for rank `n mod world_size` alone. Everything else of the plan that the cache holds is the
    pool, in the order of the plan, so that a resumed run draws from it as an uninterrupted one.
    """

    def __init__(
        self,
        keys: Sequence[bytes],
        store: Store,
        *,
        rank: int,
        world_size: int,
        max_times_sampled: int | None,
    ) -> None:
        """Look at what the cache holds of the plan's `keys` now."""
        self._keys = list(keys)
        self._numbers = {key: number for number, key in enumerate(keys)}
        self._store = store
        self._rank, self._world_size = rank, world_size
        self.limit = max_times_sampled
        self.start(store.position(), {})

    def start(self, position: int, times: Mapping[int, int]) -> None:
        """Begin the run at a position of the log, `times` having been served in it already."""
        self.position_at_start = self._position = position
        self._times = Counter(times)
        self._fresh: deque[int] = deque()
        self._pool: list[int] = []
        self.made_in_run: dict[int, int] = {}
        """Requests put into the cache in this run, and their positions in the log."""
        present = self._store.contains(list(self._numbers))
        self.refresh()  # after the look at the cache: what comes in between is made in this run
        for number, is_present in enumerate(present):
            if is_present and (number not in self.made_in_run or self._times[number]):
                self._offer(number)

    def __len__(self) -> int:
        """Requests of the plan."""
        return len(self._numbers)

    def refresh(self) -> None:
        """Take note of what was put into the cache since."""
        for position, key in self._store.tail(self._position):
            self._position = position
            number = self._numbers.get(key)
            if number is None:
                continue
            self.made_in_run[number] = position
            if self._times[number]:
                continue
            if position % self._world_size == self._rank:
                self._fresh.append(number)
            else:
                self._offer(number)

    def take(self, rng: np.random.Generator) -> tuple[Kind, int] | None:
        """Fresh in the order it was made, else one of the pool; None where there is neither."""
        while self._fresh:
            number = self._fresh.popleft()
            if self._is_there(number):
                self._times[number] += 1
                self._offer(number)
                return Kind.FRESH, number
        while self._pool:
            place = int(rng.integers(len(self._pool)))
            number = self._pool[place]
            is_there = self._is_there(number)
            self._times[number] += is_there
            if not is_there or self._is_used_up(number):
                del self._pool[place]
            if is_there:
                return Kind.CACHED, number
        return None

    def take_number(self, number: int) -> tuple[Kind, int]:
        """One request of the plan that is in the cache."""
        is_first = number in self._fresh
        if is_first:
            self._fresh.remove(number)
        self._times[number] += 1
        return (Kind.FRESH if is_first else Kind.CACHED), number

    def _offer(self, number: int) -> None:
        place = bisect_left(self._pool, number)
        is_offered = number in self._pool[place : place + 1]  # evicted unnoticed, and made again
        if not is_offered and not self._is_used_up(number):
            self._pool.insert(place, number)

    def _is_there(self, number: int) -> bool:
        """It was not evicted since."""
        return self._store.contains([self._keys[number]])[0]

    def _is_used_up(self, number: int) -> bool:
        """This rank has served its share of the limit; the shares of all ranks add up to it."""
        if self.limit is None:
            return False
        first = self.made_in_run.get(number, number) % self._world_size
        behind = (self._rank - first) % self._world_size
        return self._times[number] >= math.ceil((self.limit - behind) / self._world_size)


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
        self._num_requests = len(supply)
        self.epoch = self.first_step = 0
        self.planned: deque[list[Slot]] = deque()
        """Batches handed to the DataLoader and not yet to the training loop."""

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
        times, number = divmod(turn, self._num_requests)
        is_used_up = self.supply.limit is not None and times >= self.supply.limit
        if is_used_up or not self._wait_for(number):
            return Kind.STARVED, -1
        self.supply.refresh()
        return self.supply.take_number(number)

    def _synthetic_before(self, epoch: int, step: int) -> int:
        """Synthetic slots of all ranks before this step of the run."""
        if self._mixing.starvation == "substitute":
            return 0
        steps = [(e, s) for e in range(epoch) for s in range(self._order.steps)]
        steps += [(epoch, s) for s in range(step)]
        share = self._mixing.synthetic_probability
        return sum(int(self._order.is_synthetic(e, s, share).sum()) for e, s in steps)
