"""Saliency maps: their range, their size, and how they follow their image."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

EPSILON = 1e-7
"""Added to the largest value, as pytorch_grad_cam does: a map without a peak is all zero."""


def scaled(maps: Float[Tensor, "b h w"]) -> Float[Tensor, "b h w"]:
    """Each map from 0 at its smallest value to 1 at its largest; a flat map is all 0."""
    lowest = maps - maps.amin((1, 2), keepdim=True)
    return lowest / (EPSILON + lowest.amax((1, 2), keepdim=True))


def upscaled(maps: Float[Tensor, "b h w"], size: tuple[int, int]) -> Float[Tensor, "b h2 w2"]:
    """Maps at the size of their images, px: bilinear, then from 0 to 1 again."""
    large = F.interpolate(maps.unsqueeze(1), size, mode="bilinear", align_corners=False)
    return scaled(large.squeeze(1))


def follow(
    maps: Float[Tensor, "b h w"], theta: Float[Tensor, "b 2 3"], size: tuple[int, int]
) -> Float[Tensor, "b h2 w2"]:
    """Maps of images that were cropped, flipped or otherwise moved, at a new size.

    The values stay what they were: a crop without a peak stays dark.

    Args:
        maps: Of the whole images.
        theta: From places in the moved image to places in the whole one, both in [-1, 1], as
            `transforms.warp` takes it. `[[-1, 0, 0], [0, 1, 0]]` is the horizontal flip,
            `[[w, 0, x], [0, h, y]]` the crop of these shares of the sides around the centre (x, y).
        size: Height and width of the result.
    """
    grid = F.affine_grid(theta, [len(maps), 1, *size], align_corners=False)
    moved = F.grid_sample(
        maps.unsqueeze(1), grid, mode="bilinear", padding_mode="border", align_corners=False
    )
    return moved.squeeze(1)
