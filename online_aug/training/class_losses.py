"""How hard each class is for the classifier right now."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

DECAY = 0.99
"""What is left of a step's weight after one more: about the last hundred steps count."""
LEAST_MASS = 1e-3
"""Labels below this were not seen: what mixing leaves of a class tells nothing about it."""


class ClassLosses:
    """The running mean of the loss of each class, an image counted by its share of the label.

    Nothing waits for the device until `read`.
    """

    def __init__(self, num_classes: int, device: torch.device) -> None:
        """Know nothing yet."""
        self._losses = torch.zeros(num_classes, device=device)
        self._mass = torch.zeros(num_classes, device=device)

    @torch.no_grad()
    def add(self, logits: Float[Tensor, "b k"], labels: Float[Tensor, "b k"]) -> None:
        """Count one batch.

        Args:
            logits: What the classifier said.
            labels: As they are before label smoothing, which says nothing about the image.
        """
        losses = F.cross_entropy(logits.float(), labels, reduction="none")
        self._losses.mul_(DECAY).add_(losses @ labels)
        self._mass.mul_(DECAY).add_(labels.sum(0))

    def read(self) -> list[float | None]:
        """By label; None for a class that was not seen, or whose loss is not finite."""
        means, mass = (self._losses / self._mass).tolist(), self._mass.tolist()
        return [
            mean if seen >= LEAST_MASS and math.isfinite(mean) else None
            for mean, seen in zip(means, mass, strict=True)
        ]
