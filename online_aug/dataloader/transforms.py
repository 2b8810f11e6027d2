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
from online_aug.dataloader.colours import Colours
from online_aug.dataloader.frames import Frame


@dataclass(frozen=True, kw_only=True)
class EvalTransform:
    """The middle of the resized image; all of it, squashed, as in Diff-Mix (arXiv:2403.19600)."""

    frame: Frame

    def __call__(
        self, image: UInt8[Tensor, "3 h w"], rng: torch.Generator | None = None
    ) -> UInt8[Tensor, "3 s s"]:
        """The image at the size the classifier sees; `rng` is not used."""
        return self.frame.central(image)


@dataclass(frozen=True, kw_only=True)
class TrainTransform:
    """A cut, then a random shift, turn, zoom and flip in a single interpolation, then colours."""

    frame: Frame
    """Where to cut."""
    shift: float
    """Largest shift in x and in y, fraction of the side."""
    rotate_degrees: float
    """Largest rotation either way."""
    scale: tuple[float, float]
    """Smallest and largest zoom; above 1 makes things larger."""
    hflip: float
    """Probability of a horizontal flip."""
    colours: Colours = Colours()

    def __call__(
        self, image: UInt8[Tensor, "3 h w"], rng: torch.Generator
    ) -> UInt8[Tensor, "3 s s"]:
        """The image moved at random; what leaves the frame is replaced by its border."""
        # Always so many numbers, then the cut's: one setting does not change what another draws.
        draws = torch.rand(5, generator=rng, dtype=torch.float64).tolist()
        seed = int(torch.randint(2**32, (), generator=rng))
        return self.colours(self._moved(self.frame.drawn(image, rng), draws), seed)

    def _moved(self, image: UInt8[Tensor, "3 s s"], draws: list[float]) -> UInt8[Tensor, "3 s s"]:
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
        frame=frame_of(data),
        shift=data.shift,
        rotate_degrees=data.rotate_degrees,
        scale=data.scale,
        hflip=data.hflip,
        colours=Colours(policy=data.auto_augment, jitter=data.colour_jitter, erase=data.erase),
    )


def eval_transform(data: DataConfig) -> EvalTransform:
    """The fixed transform of validation and test images."""
    return EvalTransform(frame=frame_of(data))


def frame_of(data: DataConfig) -> Frame:
    """What part of an image the classifier sees."""
    return Frame(
        size=data.image_size,
        resize=data.resize,
        resize_px=data.resize_px,
        crop=data.crop,
        pad_px=data.crop_pad_px,
        area=data.crop_area,
    )


def normalise(
    images: UInt8[Tensor, "b 3 h w"], mean: Sequence[float], std: Sequence[float]
) -> Float[Tensor, "b 3 h w"]:
    """Float32 images as the classifier takes them, on the device the bytes are on.

    `mean` and `std` are those of the three channels for values in [0, 1], as in timm.
    """
    spread = torch.tensor(std, device=images.device).view(3, 1, 1)
    centre = torch.tensor(mean, device=images.device).view(3, 1, 1)
    return torch.addcmul(-centre / spread, images.float(), 1 / (255 * spread))


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
