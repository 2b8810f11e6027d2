"""First and last layers that replace those of a timm network."""

from typing import Any, cast

from torch import nn

from online_aug.config.training import ClassifierConfig
from online_aug.errors import UserError


def replace_parts(network: Any, config: ClassifierConfig) -> nn.Module:
    """Replace the layers of a network that the configuration wants otherwise than timm.

    Raises:
        UserError: If the network has no such layer.
    """
    if config.small_stem:
        _begin_small(network, config.name)
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
