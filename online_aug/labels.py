"""Soft-label arithmetic: rows over K classes, float32, each summing to 1."""

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def translation_label(
    source: Int[Tensor, " b"],
    target: Int[Tensor, " b"],
    strength: Float[Tensor, " b"],
    *,
    num_classes: int,
    gamma: float,
) -> Float[Tensor, "b k"]:
    """Label an image translated from class `source` towards class `target`.

    Diff-Mix (arXiv:2403.19600): mass `1 - strength**gamma` stays on the source class and
    `strength**gamma` moves to the target class. When the two classes coincide the row is one-hot.

    Args:
        source: Class the image was translated from.
        target: Class named in the prompt.
        strength: Fraction of the diffusion trajectory replayed, in (0, 1].
        num_classes: Length of a row.
        gamma: Exponent > 0; below 1 trusts the prompt more than the pixels.

    Raises:
        ValueError: If `gamma` is not positive.

    Example:
        >>> from torch import tensor
        >>> translation_label(
        ...     tensor([0]), tensor([1]), tensor([0.25]), num_classes=2, gamma=0.5
        ... )
        tensor([[0.5000, 0.5000]])
    """
    if gamma <= 0:
        raise ValueError(f"gamma must be positive, got {gamma}")
    moved = (strength**gamma).unsqueeze(1)
    return (1 - moved) * F.one_hot(source, num_classes) + moved * F.one_hot(target, num_classes)


def smooth(labels: Float[Tensor, "b k"], smoothing: float) -> Float[Tensor, "b k"]:
    """Move `smoothing` of every row's mass to the uniform distribution, smoothing in [0, 1)."""
    return labels * (1 - smoothing) + smoothing / labels.shape[1]
