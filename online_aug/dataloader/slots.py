"""The slots of every batch: which real image is there, and which ask for a synthetic one."""

import math
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from online_aug.dataloader.probability import Probability
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
    probability: Probability
    """Of a synthetic sample; its start, below 1, where they are added."""
    adds: bool = False
    """Synthetic samples come beside all the real ones, not in the place of some."""

    @property
    def steps(self) -> int:
        """Batches an epoch; the last images that fill none are left out, they change each epoch."""
        return max(1, self._pass_length * self.repeats // self.batch_size)

    def indices(self, epoch: int) -> np.ndarray:
        """Real image of each position, `steps * batch_size` in all.

        Every image once a repeat; where synthetic samples are added, these go round the images.
        """
        return self._entries(epoch) % self.num_images

    def is_synthetic(self, epoch: int) -> np.ndarray:
        """Which positions ask for a synthetic sample."""
        if self.adds:
            return np.asarray(self._entries(epoch) >= self.num_images)
        wanted = self.probability.of(epoch, self.indices(epoch))
        steps = range(self.steps)
        draws = [numpy_rng("mix", self.seed, epoch, s).random(self.batch_size) for s in steps]
        return np.asarray(np.concatenate(draws) < wanted)

    @property
    def _pass_length(self) -> int:
        """Slots a repeat: the real images, and what is added to them."""
        share = self.probability.start
        added = self.num_images * share / (1 - share) if self.adds else 0
        return self.num_images + round(added)

    def _entries(self, epoch: int) -> np.ndarray:
        """A real image by its number, or an added sample by a number beyond theirs."""
        length = self.steps * self.batch_size
        passes = math.ceil(length / self._pass_length)
        orders = [
            numpy_rng("order", self.seed, epoch, number).permutation(self._pass_length)
            for number in range(passes)
        ]
        return np.concatenate(orders)[:length]
