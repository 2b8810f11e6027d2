"""The loss of a batch: cross-entropy, or one for long tails.

Each is a mean over the classes of a label, so that soft labels are those of mixtures. Weights of
classes divide by their sum over the batch, as PyTorch's do for hard labels.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from online_aug.classifier.replaced_parts import COSINE_SCALE
from online_aug.config.training import OptimConfig

LARGEST_MARGIN = 0.5
"""Margin of the rarest class between cosines (LDAM)."""
EFFECTIVE_BETA = 0.9999
"""Class-balanced weights, `(1 - beta) / (1 - beta^n)`, of deferred re-weighting."""


class ClassifierLoss:
    """The loss that `optim.loss` and `optim.reweight_after` name."""

    def __init__(
        self, optim: OptimConfig, class_sizes: Sequence[int], device: torch.device
    ) -> None:
        """Prepare what the sizes decide.

        Args:
            optim: Names the loss.
            class_sizes: Training images of each class; not looked at for plain cross-entropy.
            device: Device of the logits.
        """
        sizes = torch.tensor([max(1, size) for size in class_sizes], dtype=torch.float64)
        self._name, self._after = optim.loss, optim.reweight_after
        self._log_sizes = sizes.log().float().to(device)
        self._margins = (margins(sizes) if len(sizes) else sizes).to(device)
        self._weights = effective_weights(sizes).float().to(device)

    def __call__(
        self, logits: Float[Tensor, "b k"], labels: Float[Tensor, "b k"], epoch: int
    ) -> Float[Tensor, ""]:
        """Return the loss of a batch with soft labels in an epoch, counted from 0."""
        is_weighted = self._after is not None and epoch >= self._after
        if self._name == "cross_entropy" and not is_weighted:
            return F.cross_entropy(logits, labels)
        losses = self._by_class(logits)
        weights = labels * self._weights if is_weighted else labels
        return (weights * losses).sum() / weights.sum()

    def _by_class(self, logits: Float[Tensor, "b k"]) -> Float[Tensor, "b k"]:
        """Return the loss of each image were it of each class."""
        if self._name == "ldam":
            return margin_losses(logits, COSINE_SCALE * self._margins)
        shifted = logits + self._log_sizes if self._name == "balanced_softmax" else logits
        return -F.log_softmax(shifted, dim=1)


def margins(sizes: Float[Tensor, " k"]) -> Float[Tensor, " k"]:
    """Return LDAM's margins, in proportion to 1 / n^(1/4), the largest of them 0.5."""
    unscaled = sizes**-0.25
    return LARGEST_MARGIN * unscaled / unscaled.max()


def effective_weights(sizes: Float[Tensor, " k"]) -> Float[Tensor, " k"]:
    """Return weights by the effective number of images of each class, 1 on average."""
    weights = (1 - EFFECTIVE_BETA) / (1 - EFFECTIVE_BETA**sizes)
    return weights / weights.mean()


def margin_losses(
    logits: Float[Tensor, "b k"], lowered_by: Float[Tensor, " k"]
) -> Float[Tensor, "b k"]:
    """Return the cross-entropy for each class after its own logit alone was lowered."""
    wide = logits.double()  # the sum over the other classes is a small difference of large numbers
    shifted = wide - wide.max(dim=1, keepdim=True).values
    powers = shifted.exp()
    others = powers.sum(dim=1, keepdim=True) - powers
    own = shifted - lowered_by
    return ((others + own.exp()).log() - own).to(logits.dtype)
