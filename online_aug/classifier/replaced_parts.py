"""First and last layers that replace those of a timm network."""

from typing import Any, cast

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from online_aug.config.training import ClassifierConfig
from online_aug.errors import UserError

COSINE_SCALE = 30.0
"""The largest logit of a cosine head, as in the LDAM paper's code."""


class CosineHead(nn.Linear):
    """A last layer whose logits are scaled cosines between features and class weights."""

    def __init__(self, in_features: int, num_classes: int) -> None:
        """Take features of a length; there is no bias."""
        super().__init__(in_features, num_classes, bias=False)

    def forward(self, features: Float[Tensor, "*b f"]) -> Float[Tensor, "*b k"]:
        """Return the logits."""
        cosines = F.linear(F.normalize(features, dim=-1), F.normalize(self.weight, dim=-1))
        return COSINE_SCALE * cosines


def replace_parts(network: Any, config: ClassifierConfig) -> nn.Module:
    """Replace the layers of a network that the configuration wants otherwise than timm.

    Raises:
        UserError: If the network has no such layer.
    """
    if config.small_stem:
        _begin_small(network, config.name)
    if config.head == "cosine":
        _end_with_cosines(network, config.name)
    return cast(nn.Module, network)


def _begin_small(network: Any, name: str) -> None:
    first, pool = getattr(network, "conv1", None), getattr(network, "maxpool", None)
    if not isinstance(first, nn.Conv2d) or not isinstance(pool, nn.Module):
        raise UserError(
            "classifier.small_stem must be false for a network that does not begin with one "
            f"convolution and a pooling as ResNets do, got true for {name}"
        )
    network.conv1 = nn.Conv2d(3, first.out_channels, 3, padding=1, bias=False)
    network.maxpool = nn.Identity()


def _end_with_cosines(network: Any, name: str) -> None:
    head = network.get_classifier()
    place = next((place for place, part in network.named_modules() if part is head), None)
    if not isinstance(head, nn.Linear) or not place:
        raise UserError(
            f"classifier.head must be linear for {name}, whose last layer is no single linear one"
        )
    parent, _, attribute = place.rpartition(".")
    new = CosineHead(head.in_features, head.out_features)
    setattr(network.get_submodule(parent), attribute, new)
