"""The probability of a synthetic sample: fixed, or changing over the epochs, or by class."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from online_aug.config_mixing import MixingConfig
from online_aug.dataloader.image_sets import ImageSet
from online_aug.errors import UserError


@dataclass(frozen=True, kw_only=True, eq=False)
class Probability:
    """Of a synthetic sample in place of a real one."""

    start: float
    """In the first epoch."""
    end: float
    """In the last one."""
    epochs: int
    """Of the run."""
    is_cosine: bool = False
    """From one to the other along half a cosine instead of a line."""
    by_image: Float[np.ndarray, " n"] | None = None
    """Of each real image, NaN where its class has none of its own."""

    def at(self, epoch: int) -> float:
        """Of images whose class has none of its own."""
        done = min(1.0, epoch / max(1, self.epochs - 1))
        share = (1 - math.cos(math.pi * done)) / 2 if self.is_cosine else done
        return self.start + (self.end - self.start) * share

    def of(self, epoch: int, images: Int[np.ndarray, " s"]) -> Float[np.ndarray, " s"]:
        """Of the slots of these real images."""
        usual = self.at(epoch)
        if self.by_image is None:
            return np.full(len(images), usual)
        own = self.by_image[images]
        return np.where(np.isnan(own), usual, own)


def probability_of(mixing: MixingConfig, images: ImageSet, epochs: int) -> Probability:
    """What the configuration asks for.

    Args:
        mixing: Says how probable.
        images: Of the training set.
        epochs: Of the run.

    Raises:
        UserError: If a class is named that there is not.
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
