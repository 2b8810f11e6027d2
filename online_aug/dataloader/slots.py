"""The slots of every batch: which real image is there, and which ask for a synthetic one."""

import math
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

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
