"""The batch sampler: the main process of each rank decides which image fills which slot.

`BatchSampler` walks through an epoch for the DataLoader. How a slot is filled is decided by its
`filler`: `Mixing` draws real, composed, fresh and cached images as configured, `Replay` repeats the
ledger of an earlier run.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from cache import Store
from online_aug.config.sections import MixingConfig
from online_aug.errors import UserError
from online_aug.loader.back_pressure import BackPressure, GeneratorProcess
from online_aug.loader.choices import ByClass, Union
from online_aug.loader.pool import SamplePool
from online_aug.loader.slots import LEDGER_FOLDER, Kind, Ledger, Order, Slot
from online_aug.planning import Numbered
from online_aug.request import Servable
from online_aug.seeding import numpy_rng

_POLL_S = 0.05

FillStep = Callable[[int, Sequence[int]], list[Slot]]
"""Fill the slots of a step that lie at these positions of the epoch's global order."""


class Filler(Protocol):
    """Decides what fills the slots of a rank."""

    @property
    def is_exact(self) -> bool:
        """Whether a slot that ends up filled otherwise is an error."""

    def begin(self, epoch: int) -> FillStep:
        """Return what fills the steps of an epoch, one after another."""

    def extend(self, plan: Numbered[Servable], *, oldest: int, epoch: int) -> None:
        """Add a newer plan from the start of an epoch; see `SamplePool.extend`."""


class BatchSampler:
    """Batches of slots for one rank; a `batch_sampler` for the DataLoader."""

    def __init__(self, order: Order, pool: SamplePool, filler: Filler) -> None:
        """Serve the part of every global batch that belongs to the pool's rank.

        Args:
            order: The global batches.
            pool: Generated images that this rank may serve.
            filler: Fills the slots.
        """
        self._order = order
        self.pool, self.filler = pool, filler
        self.rank = pool.rank
        self._size = order.batch_size // pool.world_size
        self.epoch = self.first_step = 0
        self.planned: deque[list[Slot]] = deque()
        """Batches handed to the DataLoader and not yet to the training loop."""

    def __len__(self) -> int:
        return self._order.steps - self.first_step

    def __iter__(self) -> Iterator[list[Slot]]:
        self.planned.clear()
        fill = self.filler.begin(self.epoch)
        for step in range(self.first_step, self._order.steps):
            first = step * self._order.batch_size + self.rank * self._size
            batch = fill(step, range(first, first + self._size))
            self.planned.append(batch)
            yield batch
        self.pool.remember()


class Mixing:
    """Fills slots with real, composed, fresh and cached images, as `mixing` configures."""

    is_exact = False

    def __init__(
        self,
        order: Order,
        pool: SamplePool,
        mixing: MixingConfig | None = None,
        wait_for: Callable[[int], bool] = lambda number: True,
        *,
        digests: Sequence[str] = (),
        pressure: BackPressure | None = None,
    ) -> None:
        """Draw from `pool`.

        Args:
            order: Says which slots are synthetic, and which of those are composed.
            pool: Generated images that this rank may serve.
            mixing: Says what a synthetic sample is drawn from, and what happens if none is ready.
            wait_for: Blocks until the request of this number is in the cache; False if it was
                rejected. Used with `starvation: wait` only.
            digests: Digests of the real images; needed for `policy` `local` and `concat` only.
            pressure: Limits how often an image is served; None sets no limit.
        """
        self._order, self._pool = order, pool
        self._mixing = mixing or MixingConfig()
        self._wait_for, self._digests = wait_for, digests
        self._pressure = pressure or BackPressure(pool)
        self._first, self._num_requests = 0, len(pool.requests)
        self._since_epoch = 0
        self.by_class: ByClass | None = None
        """Draws the class of a sample first; None draws all images alike."""
        self._union = self._union_of_newest()

    def extend(self, plan: Numbered[Servable], *, oldest: int, epoch: int) -> None:
        """Add a newer plan from the start of an epoch; see `SamplePool.extend`."""
        self._first, self._num_requests = len(self._pool.requests), len(plan)
        self._since_epoch = epoch
        self._pool.extend(plan, oldest=oldest)
        self._union = self._union_of_newest()

    def _union_of_newest(self) -> Union | None:
        """Return what `policy: concat` serves of the newest plan; None if there is nothing."""
        if not self._order.adds or not self._digests:
            return None
        counts = self._pool.requests.counts(self._digests, self._first)
        union = Union(self._digests, counts, self._of_newest, self._order.seed)
        return union if len(union) else None

    def _of_newest(self, digest: str) -> list[int]:
        return [number for number in self._pool.variants(digest) if number >= self._first]

    def begin(self, epoch: int) -> FillStep:
        """Return what fills the steps of an epoch, one after another."""
        indices = self._order.indices(epoch)
        is_generated, is_composed = self._order.kinds(epoch)
        turns = self._turns_before(epoch) + np.cumsum(is_generated) - is_generated
        if self._union is not None:  # the turn is which of its image's own
            places = np.flatnonzero(is_generated)
            indices[places], turns[places] = self._union.images(self._order.turns(epoch)[places])

        def fill(step: int, positions: Sequence[int]) -> list[Slot]:
            rng = numpy_rng("choose", self._order.seed, epoch, step, self._pool.rank)
            self._pool.refresh()
            batch = []
            for position in positions:
                index, (kind, number) = int(indices[position]), (Kind.REAL, -1)
                if is_composed[position]:
                    kind = Kind.COMPOSED
                elif is_generated[position]:
                    kind, number = self._generated(
                        (epoch, position), index, int(turns[position]), rng
                    )
                batch.append(Slot(epoch, position, index, kind, number))
            return batch

        return fill

    def _generated(
        self, place: tuple[int, int], index: int, turn: int, rng: np.random.Generator
    ) -> tuple[Kind, int]:
        """Fill one slot; with `wait` the result does not depend on what the cache holds now."""
        if self._mixing.starvation == "substitute":
            taken = self._taken(index, turn, rng) if self._pressure.may_serve() else None
            return taken or (Kind.STARVED, -1)
        number = self._awaited(place, index, turn)
        if number is None or not self._wait_for(number):
            return Kind.STARVED, -1
        self._pool.refresh()
        return self._pool.take_number(number)

    def _taken(self, index: int, turn: int, rng: np.random.Generator) -> tuple[Kind, int] | None:
        """Take what the cache holds now; of older plans only if the newest one's is missing."""
        if self.by_class is not None:
            return self.by_class.take(rng, self._pool.take)
        if self._mixing.policy == "global":
            return self._pool.take(rng, None)
        variants = self._pool.variants(self._digests[index])
        if self._union is None:
            return self._pool.take(rng, variants)
        older = [number for number in variants if number < self._first]
        return self._pool.take(rng, [self._union.request(index, turn)]) or (
            self._pool.take(rng, older) if older else None
        )

    def _awaited(self, place: tuple[int, int], index: int, turn: int) -> int | None:
        """Return the request that a slot waits for; None if there is none."""
        if self._union is not None:
            return self._union.request(index, turn)
        if self._mixing.policy == "global":
            return self._in_turn(turn)
        return self._drawn(place, self._pool.variants(self._digests[index]))

    def _in_turn(self, turn: int) -> int | None:
        """Return the request whose turn it is, going round the plan; None after the last round."""
        times, place = divmod(turn, max(1, self._num_requests))
        is_used_up = self._pool.limit is not None and times >= self._pool.limit
        return None if is_used_up or not self._num_requests else self._first + place

    def _drawn(self, place: tuple[int, int], variants: Sequence[int]) -> int | None:
        """Draw one of an image's own variants in the newest plan; None if it has none."""
        newest = [number for number in variants if number >= self._first]
        rng = numpy_rng("variant", self._order.seed, *place)
        return newest[int(rng.integers(len(newest)))] if newest else None

    def _turns_before(self, epoch: int) -> int:
        """Return how many generated images all ranks want from the newest plan to this epoch."""
        if self._mixing.starvation == "substitute" or self._mixing.policy != "global":
            return 0
        epochs = range(self._since_epoch, epoch)
        return sum(int(self._order.kinds(earlier)[0].sum()) for earlier in epochs)


class Replay:
    """Fills every slot as the ledger of an earlier run says; draws nothing and waits for nothing.

    An image that cannot be served is an error.
    """

    is_exact = True

    def __init__(self, order: Order, pool: SamplePool, run: Path) -> None:
        """Serve again what `run` was served.

        Args:
            order: The global batches, as in that run.
            pool: Generated images of the same plan.
            run: Directory of that run.
        """
        self._pool = pool
        self._ledger = Ledger(run / LEDGER_FOLDER, batch_size=order.batch_size, steps=order.steps)

    def check(self, epochs: int) -> None:
        """Refuse a replay that could not be finished.

        Args:
            epochs: Epochs to be served.

        Raises:
            UserError: If the ledger does not cover them, or the cache lacks one of their images.
        """
        numbers = self._ledger.numbers(epochs)
        known = [n for n in numbers if n < len(self._pool.requests)]
        missing = len(numbers) - sum(self._pool.present(known))
        if missing:
            raise UserError(
                f"cache.path must hold every image that run.replay was served, {missing} of "
                f"{len(numbers)} are missing: fill the cache again, or name the one of that run"
            )

    def extend(self, plan: Numbered[Servable], *, oldest: int, epoch: int) -> None:
        """Add a newer plan; see `SamplePool.extend`."""
        self._pool.extend(plan, oldest=oldest)

    def begin(self, epoch: int) -> FillStep:
        """Return what fills the steps of an epoch, one after another.

        Raises:
            UserError: If that epoch was served images of another plan.
        """
        rows = self._ledger.epoch(epoch)
        if rows["number"].max(initial=-1) >= len(self._pool.requests):
            raise UserError(
                "run.replay must have been served images of this plan, epoch "
                f"{epoch + 1} has others"
            )

        def fill(step: int, positions: Sequence[int]) -> list[Slot]:
            return [
                Slot(epoch, position, int(index), Kind(int(kind)), int(number))
                for position in positions
                for index, kind, number in [rows[position]]
            ]

        return fill


class StopWaiting(Exception):
    """The wait for an image was given up because the run is to stop."""


class WaitFor:
    """Blocks until the request of a number is made; False if it was rejected."""

    def __init__(
        self,
        store: Store,
        requests: Sequence[Servable],
        generator: GeneratorProcess | None,
        timeout_s: float = 600.0,
        is_stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        """Look into `store`.

        Args:
            store: Cache that gets the images.
            requests: Requests by number; may grow.
            generator: Makes the images; None if another process does.
            timeout_s: Longest wait for one image.
            is_stopping: Whether to give up.
        """
        self._store, self._requests = store, requests
        self._generator, self._timeout_s = generator, timeout_s
        self._is_stopping = is_stopping

    def __call__(self, number: int) -> bool:
        """Wait for one request.

        Raises:
            UserError: If it does not come in time, or never will because the cache is full.
            StopWaiting: If the run is to stop meanwhile.
        """
        until = time.monotonic() + self._timeout_s
        while time.monotonic() < until:
            full = self._why_full()  # asked before the cache, which then holds all that was made
            status = self._store.status([self._requests[number].key])[0]
            if status in ("present", "rejected"):
                return status == "present"
            if full is not None:
                raise UserError(
                    f"mixing.starvation: wait needs image {number} of the plan, which is not made: "
                    f"{full}; the same command then goes on"
                )
            if self._generator:
                self._generator.check()
            if self._is_stopping():
                raise StopWaiting
            time.sleep(_POLL_S)
        raise UserError(
            f"mixing.starvation: wait has waited {self._timeout_s:.0f} s for image {number} of the "
            "plan; is anything generating into this cache?"
        )

    def _why_full(self) -> str | None:
        if self._generator is None or self._generator.status.state != "full":
            return None
        return self._generator.status.note
