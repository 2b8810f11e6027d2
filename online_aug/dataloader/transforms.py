"""Image transforms on uint8 tensors; the same for real and synthetic images.

All chance comes from the generator handed in, so a sample is a function of its seed alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from online_aug.config_data import DataConfig


@dataclass(frozen=True, kw_only=True)
class EvalTransform:
    """Square resize; the aspect ratio is ignored, as in Diff-Mix (arXiv:2403.19600)."""

    size: int
    """Side of the result, px."""

    def __call__(
        self, image: UInt8[Tensor, "3 h w"], rng: torch.Generator | None = None
    ) -> UInt8[Tensor, "3 s s"]:
        """The image at the size the classifier sees; `rng` is not used."""
        return resize(image, self.size)


@dataclass(frozen=True, kw_only=True)
class TrainTransform:
    """Square resize, then a random shift, turn, zoom and flip in a single interpolation."""

    size: int
    """Side of the result, px."""
    shift: float
    """Largest shift in x and in y, fraction of the side."""
    rotate_degrees: float
    """Largest rotation either way."""
    scale: tuple[float, float]
    """Smallest and largest zoom; above 1 makes things larger."""
    hflip: float
    """Probability of a horizontal flip."""

    def __call__(
        self, image: UInt8[Tensor, "3 h w"], rng: torch.Generator
    ) -> UInt8[Tensor, "3 s s"]:
        """The image moved at random; what leaves the frame is replaced by its border."""
        image = resize(image, self.size)
        # Always five numbers: one setting then does not change what another one draws.
        draws = torch.rand(5, generator=rng, dtype=torch.float64).tolist()
        flip = draws[0] < self.hflip
        angle = math.radians((2 * draws[1] - 1) * self.rotate_degrees)
        zoom = self.scale[0] + draws[2] * (self.scale[1] - self.scale[0])
        x, y = ((2 * draw - 1) * self.shift for draw in draws[3:])
        if angle == 0 and zoom == 1 and x == 0 and y == 0:
            return image.flip(2) if flip else image
        return warp(image, _output_to_input(flip=flip, angle=angle, zoom=zoom, shift=(x, y)))


def train_transform(data: DataConfig) -> TrainTransform:
    """The random transform of training images that the configuration describes."""
    return TrainTransform(
        size=data.image_size,
        shift=data.shift,
        rotate_degrees=data.rotate_degrees,
        scale=data.scale,
        hflip=data.hflip,
    )


def eval_transform(data: DataConfig) -> EvalTransform:
    """The fixed transform of validation and test images."""
    return EvalTransform(size=data.image_size)


def normalise(
    images: UInt8[Tensor, "b 3 h w"], mean: Sequence[float], std: Sequence[float]
) -> Float[Tensor, "b 3 h w"]:
    """Float32 images as the classifier takes them, on the device the bytes are on.

    `mean` and `std` are those of the three channels for values in [0, 1], as in timm.
    """
    spread = torch.tensor(std, device=images.device).view(3, 1, 1)
    centre = torch.tensor(mean, device=images.device).view(3, 1, 1)
    return torch.addcmul(-centre / spread, images.float(), 1 / (255 * spread))


def resize(image: UInt8[Tensor, "3 h w"], size: int) -> UInt8[Tensor, "3 s s"]:
    """The image as a square of `size` px: bilinear, with antialiasing where it shrinks."""
    if image.shape[1:] == (size, size):
        return image
    # The byte kernel of PyTorch is fastest with the channels innermost.
    batch = image.unsqueeze(0).contiguous(memory_format=torch.channels_last)
    return F.interpolate(batch, (size, size), mode="bilinear", antialias=True)[0]


def warp(image: UInt8[Tensor, "3 s s"], theta: Float[Tensor, "2 3"]) -> UInt8[Tensor, "3 s s"]:
    """The image resampled once; `theta` leads from places in the result to places in the image.

    Places are in [-1, 1] in both.
    """
    batch = image.unsqueeze(0).float()
    grid = F.affine_grid(theta.unsqueeze(0), list(batch.shape), align_corners=False)
    moved = F.grid_sample(batch, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return moved[0].round_().to(torch.uint8)


def _output_to_input(
    *, flip: bool, angle: float, zoom: float, shift: tuple[float, float]
) -> Float[Tensor, "2 3"]:
    """The inverse of: flip, zoom, turn, then shift (a fraction of the side, which spans 2)."""
    cos, sin = math.cos(angle) / zoom, math.sin(angle) / zoom
    x, y = 2 * shift[0], 2 * shift[1]
    first, second = [cos, sin, -cos * x - sin * y], [-sin, cos, sin * x - cos * y]
    return torch.tensor([[-value for value in first] if flip else first, second])
