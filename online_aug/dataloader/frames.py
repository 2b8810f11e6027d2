"""A square out of an image of any shape: resized, then cut in the middle or at random."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from torch import Tensor

Resize = Literal["squash", "shortest", "longest"]
Crop = Literal["centre", "random", "resized"]

_TRIES = 10
_NARROWEST, _WIDEST = 3 / 4, 4 / 3


@dataclass(frozen=True, kw_only=True)
class Frame:
    """Which part of an image becomes the square that a classifier sees."""

    size: int
    """Side of the square, px."""
    resize: Resize = "squash"
    """Which side becomes `resize_px`: both, the shortest or the longest."""
    resize_px: int | None = None
    """None is `size`: nothing of a squashed image is cut away."""
    crop: Crop = "centre"
    """Where training cuts: the middle, anywhere, or a part of any area, resized to the square."""
    pad_px: int = 0
    """Black border around the image before a random cut."""
    area: tuple[float, float] = (0.08, 1.0)
    """Smallest and largest part of an image that `resized` takes."""

    def central(self, image: UInt8[Tensor, "3 h w"]) -> UInt8[Tensor, "3 s s"]:
        """The middle of the resized image; black where that is smaller than the square."""
        image = _padded(self._resized(image), self.size)
        top, left = ((side - self.size) // 2 for side in image.shape[1:])
        return image[:, top : top + self.size, left : left + self.size]

    def drawn(self, image: UInt8[Tensor, "3 h w"], rng: torch.Generator) -> UInt8[Tensor, "3 s s"]:
        """The part that `crop` says, places and sizes drawn from `rng`."""
        if self.crop == "centre":
            return self.central(image)
        if self.crop == "resized":
            top, left, height, width = _box(image.shape[1], image.shape[2], self.area, rng)
            return resize(image[:, top : top + height, left : left + width], self.size)
        image = _padded(F.pad(self._resized(image), [self.pad_px] * 4), self.size)
        draws = torch.rand(2, generator=rng, dtype=torch.float64).tolist()
        free = [side - self.size + 1 for side in image.shape[1:]]
        top, left = (int(draw * places) for draw, places in zip(draws, free, strict=True))
        return image[:, top : top + self.size, left : left + self.size]

    def _resized(self, image: UInt8[Tensor, "3 h w"]) -> UInt8[Tensor, "3 a b"]:
        side, (height, width) = self.resize_px or self.size, image.shape[1:]
        if self.resize == "squash":
            return resize(image, side)
        scale = side / (min if self.resize == "shortest" else max)(height, width)
        return _interpolate(image, max(1, round(height * scale)), max(1, round(width * scale)))


def resize(image: UInt8[Tensor, "3 h w"], size: int) -> UInt8[Tensor, "3 s s"]:
    """The image as a square of `size` px: bilinear, with antialiasing where it shrinks."""
    return _interpolate(image, size, size)


def _interpolate(image: UInt8[Tensor, "3 h w"], height: int, width: int) -> UInt8[Tensor, "3 a b"]:
    if image.shape[1:] == (height, width):
        return image
    # The byte kernel of PyTorch is fastest with the channels innermost.
    batch = image.unsqueeze(0).contiguous(memory_format=torch.channels_last)
    return F.interpolate(batch, (height, width), mode="bilinear", antialias=True)[0]


def _padded(image: UInt8[Tensor, "3 h w"], least: int) -> UInt8[Tensor, "3 a b"]:
    missing = [max(0, least - side) for side in image.shape[1:]]
    if not any(missing):
        return image
    (top, left), (bottom, right) = ([n // 2 for n in missing], [n - n // 2 for n in missing])
    return F.pad(image, [left, right, top, bottom])


def _box(
    height: int, width: int, area: tuple[float, float], rng: torch.Generator
) -> tuple[int, int, int, int]:
    """Top, left, height and width of a part of any area and shape (Inception's, as in timm).

    After ten parts that do not fit, the largest one in the middle of an allowed shape.
    """
    for _ in range(_TRIES):
        draws = torch.rand(4, generator=rng, dtype=torch.float64).tolist()
        pixels = height * width * (area[0] + draws[0] * (area[1] - area[0]))
        ratio = _NARROWEST * (_WIDEST / _NARROWEST) ** draws[1]
        h, w = round(math.sqrt(pixels / ratio)), round(math.sqrt(pixels * ratio))
        if 0 < h <= height and 0 < w <= width:
            return int(draws[2] * (height - h + 1)), int(draws[3] * (width - w + 1)), h, w
    h = min(height, max(1, round(width / _NARROWEST)))
    w = min(width, max(1, round(height * _WIDEST)))
    return (height - h) // 2, (width - w) // 2, h, w
