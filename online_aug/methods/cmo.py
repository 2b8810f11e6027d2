"""CMO (arXiv:2112.00412): boxes of images of rare classes put onto other images.

A pure function of seed, epoch and position, so that neither workers, ranks nor an interruption
change it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from online_aug.seeding import numpy_rng


def rare_class_chances(labels: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Return the running sum of each image's chance, 1 over the size of its class."""
    chances = np.cumsum(1 / np.bincount(labels)[labels])
    summed: Float[np.ndarray, " n"] = chances / chances[-1]
    return summed


class Pasted(NamedTuple):
    """A box of another image."""

    number: int
    """The training image that the box is of."""
    top: int
    bottom: int
    left: int
    right: int

    def put_on(
        self,
        image: UInt8[Tensor, "3 h w"],
        label: Float[Tensor, " k"],
        other: UInt8[Tensor, "3 h w"],
        other_label: Float[Tensor, " k"],
    ) -> tuple[UInt8[Tensor, "3 h w"], Float[Tensor, " k"]]:
        """Return an image with the box of another one, and their labels mixed by area."""
        rows, columns = slice(self.top, self.bottom), slice(self.left, self.right)
        mixed = image.clone()
        mixed[:, rows, columns] = other[:, rows, columns]
        share = (self.bottom - self.top) * (self.right - self.left) / image[0].numel()
        return mixed, (1 - share) * label + share * other_label


@dataclass(frozen=True, kw_only=True, eq=False)
class RareForegrounds:
    """Draws what is put onto the images of a run."""

    chances: Float[np.ndarray, " n"]
    """Result of `rare_class_chances` for the training images."""
    beta: float
    probability: float
    slots_a_draw: int
    """Neighbouring slots that share a box: those of a batch over all ranks, or one."""
    epochs: range
    """Epochs in which anything is put onto images."""
    seed: int

    def draw(self, epoch: int, position: int, shape: Sequence[int]) -> Pasted | None:
        """Draw a box for the slot at a position of an epoch; None if its image stays as it is.

        Args:
            epoch: The epoch, from 0.
            position: Place in the epoch's global order.
            shape: Shape of the image, which ends with height and width.
        """
        if epoch not in self.epochs:
            return None
        shared = numpy_rng("cmo-box", self.seed, epoch, position // self.slots_a_draw)
        if shared.random() >= self.probability:
            return None
        (top, bottom), (left, right) = self._sides(shared, shape)
        place = numpy_rng("cmo-image", self.seed, epoch, position).random()
        index = int(np.searchsorted(self.chances, place, side="right"))
        return Pasted(min(index, len(self.chances) - 1), top, bottom, left, right)

    def _sides(
        self, rng: np.random.Generator, shape: Sequence[int]
    ) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return where a box of CutMix begins and ends, down and across; its area is 1 - lam."""
        height, width = shape[-2:]
        ratio = np.sqrt(1 - rng.beta(self.beta, self.beta))
        middle = rng.integers(height), rng.integers(width)
        half = int(height * ratio) // 2, int(width * ratio) // 2
        down, across = (
            (max(0, int(at) - by), min(size, int(at) + by))
            for at, by, size in zip(middle, half, (height, width), strict=True)
        )
        return down, across
