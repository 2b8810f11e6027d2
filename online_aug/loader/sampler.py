"""Which image fills which slot: real, fresh or cached, decided in the main process of each rank.

How often a generated image is served, kept between two limits (Reverb's rate limiter).

The sequence of an earlier run again, from its ledger and the cache.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from online_aug.config.mixing import MixingConfig
from online_aug.errors import UserError
from online_aug.loader.pool import Supply
from online_aug.loader.slots import Kind, Ledger, Order, Slot
from online_aug.request import Servable
from online_aug.seeding import numpy_rng

_TOLERATED = 10.0
"""Times the ratio: the error allowed where the configuration says none."""


@dataclass(frozen=True, kw_only=True)
class RateLimiter:
    """`inserts * samples_per_insert - samples` stays within an error of where sampling begins.

    Too low, and serving must pause; too high, and generating must.
    """

    samples_per_insert: float
    min_inserts: int
    """Images that must be there before one is served."""
    tolerance: float
    """Largest error either way, in served images."""
    max_ahead: int
    """Images not served at which the generation process pauses by itself."""

    def can_sample(self, inserts: int, samples: int, wanted: int = 1) -> bool:
        """Whether so many more may be served.

        Args:
            inserts: Images there have been to serve.
            samples: Times one was served.
            wanted: Images to be served.
        """
        lowest = self.min_inserts * self.samples_per_insert - self.tolerance
        error = inserts * self.samples_per_insert - samples - wanted
        return inserts >= self.min_inserts and error >= lowest

    def room(self, inserts: int, samples: int) -> int:
        """How many more images may be made now; negative where there are too many."""
        highest = self.min_inserts * self.samples_per_insert + self.tolerance
        allowed = math.floor((samples + highest) / self.samples_per_insert)
        return max(self.min_inserts, allowed) - inserts

    def paid(self, made: int, inserts: int, samples: int) -> int:
        """What to tell the generation process as served, so that it pauses where there is no room.

        Args:
            made: By the process in this launch.
            inserts: Images there have been to serve.
            samples: Times one was served.
        """
        return made - self.max_ahead + self.room(inserts, samples)


def limiter_of(mixing: MixingConfig, max_ahead: int) -> RateLimiter | None:
    """What the configuration asks for; None where only the ratio is reported."""
    ratio = mixing.samples_per_insert
    if ratio is None:
        return None
    tolerance = mixing.sampling_tolerance
    return RateLimiter(
        samples_per_insert=ratio,
        min_inserts=mixing.min_inserts,
        tolerance=_TOLERATED * max(1.0, ratio) if tolerance is None else tolerance,
        max_ahead=max_ahead,
    )


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


LEDGER_FOLDER = "ledger"


class ReplaySampler(MixingSampler):
    """Fills every slot as the ledger says; nothing is drawn and nothing waited for."""

    is_replay = True

    def __init__(self, order: Order, supply: Supply, run: Path) -> None:
        """Serve again what `run` was served.

        Args:
            order: The global batches, as in that run.
            supply: The generated images of the same plan.
            run: Directory of that run.
        """
        super().__init__(order, supply)
        self._ledger = Ledger(run / LEDGER_FOLDER, batch_size=order.batch_size, steps=order.steps)

    def check(self, epochs: int) -> None:
        """Refuse a replay that could not be finished.

        Args:
            epochs: To be served.

        Raises:
            UserError: If the ledger does not cover them, or the cache lacks an image of them.
        """
        numbers = self._ledger.numbers(epochs)
        known = [n for n in numbers if n < len(self.supply.keys)]
        missing = len(numbers) - sum(self.supply.present(known))
        if missing:
            raise UserError(
                f"cache.path must hold every image that run.replay was served, {missing} of "
                f"{len(numbers)} are missing: fill the cache again, or name the one of that run"
            )

    def _filler(self) -> Callable[[int], list[Slot]]:
        rows = self._ledger.epoch(self.epoch)
        if rows["number"].max(initial=-1) >= len(self.supply.keys):
            raise UserError(
                "run.replay must have been served images of this plan, epoch "
                f"{self.epoch + 1} has others"
            )

        def fill(step: int) -> list[Slot]:
            return [
                Slot(self.epoch, position, int(index), Kind(int(kind)), int(number))
                for position in self._positions(step)
                for index, kind, number in [rows[position]]
            ]

        return fill
