"""Soft labels: distributions over K classes, float32, each summing to 1."""

from functools import lru_cache

import numpy as np
from jaxtyping import Float


def one_hot(label: int, num_classes: int) -> Float[np.ndarray, " k"]:
    """Return the distribution that has all of its mass on class `label`."""
    row = np.zeros(num_classes, np.float32)
    row[label] = 1
    return row


def translation_label(
    source: int, target: int, strength: float, *, num_classes: int, gamma: float
) -> Float[np.ndarray, " k"]:
    """Label an image translated from class `source` towards class `target`.

    Diff-Mix (arXiv:2403.19600): mass `1 - strength**gamma` stays on the source class and
    `strength**gamma` moves to the target class. If the two classes coincide the label is one-hot.

    Args:
        source: Class the image was translated from.
        target: Class named in the prompt.
        strength: Fraction of the diffusion trajectory replayed, in (0, 1].
        num_classes: Length of the label.
        gamma: Exponent > 0; below 1 trusts the prompt more than the pixels.

    Raises:
        ValueError: If `gamma` is not positive.

    Example:
        >>> translation_label(0, 1, 0.25, num_classes=2, gamma=0.5)
        array([0.5, 0.5], dtype=float32)
    """
    if gamma <= 0:
        raise ValueError(f"gamma must be positive, got {gamma}")
    moved = np.float32(strength) ** np.float32(gamma)
    kept = np.float32(1) - moved
    return kept * one_hot(source, num_classes) + moved * one_hot(target, num_classes)


@lru_cache(maxsize=4)  # asked for with every request
def rare_class_weights(class_sizes: tuple[int, ...], balance: float) -> tuple[float, ...] | None:
    """Return the chance of each class, in proportion to 1 / (n + 1)^balance of its n images.

    Args:
        class_sizes: Training images of each class.
        balance: 0 draws all classes alike, for which the result is None.

    Example:
        >>> rare_class_weights((2, 4), 1.0)
        (0.625, 0.375)
    """
    if not balance:
        return None
    shares = [(size + 1) ** -balance for size in class_sizes]
    total = sum(shares)
    return tuple(share / total for share in shares)
