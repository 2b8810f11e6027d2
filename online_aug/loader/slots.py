"""The slots of every batch: which real image is there, and which slots ask for a synthetic one.

Everything here is a function of configuration, seed and epoch, whatever the number of ranks.
"""

import math
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from jaxtyping import Bool, Float, Int

from online_aug.config import Config
from online_aug.config.sections import MixingConfig
from online_aug.data.image_sets import ImageSet
from online_aug.errors import UserError
from online_aug.seeding import numpy_rng


class Kind(IntEnum):
    """How a slot was filled."""

    REAL = 0
    FRESH = 1
    """A generated image that is served for the first time in this run."""
    CACHED = 2
    """Any other generated image."""
    STARVED = 3
    """The real image, because no synthetic one was ready."""


@dataclass(frozen=True, slots=True)
class Slot:
    """One sample of a batch."""

    epoch: int
    position: int
    """Place in the epoch's global order; it seeds the transform."""
    index: int
    """The real image at this position."""
    kind: Kind
    number: int
    """Number of the request in the plan; -1 for a real image."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Probability:
    """Probability that a slot is synthetic: fixed, changing over the epochs, or given by class."""

    start: float
    """Probability in the first epoch."""
    end: float
    """Probability in the last epoch."""
    epochs: int
    """Epochs of the run."""
    is_cosine: bool = False
    """Whether it changes along half a cosine instead of a line."""
    by_image: Float[np.ndarray, " n"] | None = None
    """Probability for each real image, NaN if its class has none of its own."""

    def at(self, epoch: int) -> float:
        """Return the probability for classes that have none of their own."""
        done = min(1.0, epoch / max(1, self.epochs - 1))
        share = (1 - math.cos(math.pi * done)) / 2 if self.is_cosine else done
        return self.start + (self.end - self.start) * share

    def of(self, epoch: int, images: Int[np.ndarray, " s"]) -> Float[np.ndarray, " s"]:
        """Return the probability for the slots of these real images."""
        usual = self.at(epoch)
        if self.by_image is None:
            return np.full(len(images), usual)
        own = self.by_image[images]
        return np.where(np.isnan(own), usual, own)


@dataclass(frozen=True, kw_only=True)
class Order:
    """The global batches of every epoch."""

    num_images: int
    """Real images."""
    batch_size: int
    """Slots in a step, over all ranks."""
    repeats: int
    """Times that an epoch goes through the real images."""
    seed: int
    probability: Probability
    """Probability of a synthetic sample; with `adds` its start, below 1, is used for all epochs."""
    adds: bool = False
    """Whether synthetic samples are added to the real ones instead of replacing some."""

    @property
    def steps(self) -> int:
        """Batches in an epoch; the images left over at its end differ from epoch to epoch."""
        return max(1, self._pass_length * self.repeats // self.batch_size)

    def indices(self, epoch: int) -> Int[np.ndarray, " slots"]:
        """Return the real image at each of the `steps * batch_size` positions.

        Every image comes once in each repeat. Added synthetic samples go round the images.
        """
        return self._entries(epoch) % self.num_images

    def is_synthetic(self, epoch: int) -> Bool[np.ndarray, " slots"]:
        """Return which positions ask for a synthetic sample."""
        if self.adds:
            return np.asarray(self._entries(epoch) >= self.num_images)
        wanted = self.probability.of(epoch, self.indices(epoch))
        steps = range(self.steps)
        draws = [numpy_rng("mix", self.seed, epoch, s).random(self.batch_size) for s in steps]
        return np.asarray(np.concatenate(draws) < wanted)

    @property
    def _pass_length(self) -> int:
        share = self.probability.start
        added = self.num_images * share / (1 - share) if self.adds else 0
        return self.num_images + round(added)

    def _entries(self, epoch: int) -> Int[np.ndarray, " slots"]:
        length = self.steps * self.batch_size  # entries from num_images on are added samples
        passes = math.ceil(length / self._pass_length)
        orders = [
            numpy_rng("order", self.seed, epoch, number).permutation(self._pass_length)
            for number in range(passes)
        ]
        return np.concatenate(orders)[:length]


def order_of(config: Config, images: ImageSet) -> Order:
    """Return the global batches that a configuration asks for.

    Raises:
        UserError: If `mixing.class_probability` names a class that `images` does not have.
    """
    return Order(
        num_images=len(images),
        batch_size=config.optim.batch_size,
        repeats=config.data.epoch_repeats,
        seed=config.run.seed,
        probability=probability_of(config.mixing, images, config.run.epochs),
        adds=config.mixing.policy == "concat",
    )


def probability_of(mixing: MixingConfig, images: ImageSet, epochs: int) -> Probability:
    """Return the probability of a synthetic sample that a configuration asks for.

    Raises:
        UserError: If `mixing.class_probability` names a class that `images` does not have.
    """
    end = mixing.final_probability
    return Probability(
        start=mixing.synthetic_probability,
        end=mixing.synthetic_probability if end is None else end,
        epochs=epochs,
        is_cosine=mixing.probability_schedule == "cosine",
        by_image=_by_image(mixing, images) if mixing.class_probability else None,
    )


def _by_image(mixing: MixingConfig, images: ImageSet) -> Float[np.ndarray, " n"]:
    names, own = images.class_names, mixing.class_probability
    unknown = sorted(own.keys() - set(names))
    if unknown:
        raise UserError(
            f"mixing.class_probability must name classes of data.source, got {unknown[0]!r}; "
            f"known: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
        )
    of_class = np.array([own.get(name, np.nan) for name in names])
    return np.asarray(of_class[np.asarray(images.labels)])
