"""Image transforms on uint8 tensors; the same for real and synthetic images.

All chance comes from the generator handed in, so a sample is a function of its seed alone.

timm's and torchvision's transforms of colours and parts, on uint8 tensors and by a seed.

A square out of an image of any shape: resized, then cut in the middle or at random.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.data.auto_augment import (
    augment_and_mix_transform,
    auto_augment_transform,
    rand_augment_transform,
)
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from online_aug.data.settings import DataConfig
from online_aug.errors import UserError
from online_aug.seeding import library_state
import math
from typing import Literal
import torch.nn.functional as F
from collections.abc import Sequence
from jaxtyping import Float, UInt8

_FARTHEST_MOVE = 0.45
"""Of the side; timm's, for RandAugment and AutoAugment."""


@dataclass(frozen=True, kw_only=True)
class Colours:
    """What changes a square after it was cut and moved."""

    policy: str | None = None
    """timm's name of a RandAugment, AutoAugment or AugMix policy."""
    jitter: float | None = None
    """Largest change of brightness, contrast and saturation, as a factor around 1."""
    erase: float = 0.0
    """Probability that a rectangle is replaced by noise."""

    def __call__(self, image: UInt8[Tensor, "3 s s"], seed: int) -> UInt8[Tensor, "3 s s"]:
        """The image changed by what `seed` draws; global random states are left alone."""
        if self == Colours():
            return image
        with library_state(seed):
            if self.policy is not None:
                image = _by_policy(image, self.policy)
            if self.jitter is not None:
                image = _jittered(image, self.jitter)
            return _erased(image, self.erase) if self.erase else image


def check_policy(data: DataConfig) -> None:
    """Refuse a policy that timm cannot read.

    Raises:
        UserError: If it is none.
    """
    if data.auto_augment is None:
        return
    try:
        _policy(data.auto_augment, data.image_size)
    except (AssertionError, ValueError, KeyError, TypeError, IndexError, AttributeError):
        raise UserError(
            "data.auto_augment must be a policy of timm such as rand-m9-mstd0.5-inc1, "
            f"original-mstd0.5 or augmix-m3-w3, got {data.auto_augment!r}"
        ) from None


@lru_cache(maxsize=4)
def _policy(name: str, size: int) -> Callable[[Image.Image], Image.Image]:
    grey = tuple(round(255 * value) for value in IMAGENET_DEFAULT_MEAN)
    settings = {"translate_const": int(size * _FARTHEST_MOVE), "img_mean": grey}
    kinds = {"rand": rand_augment_transform, "augmix": augment_and_mix_transform}
    make = kinds.get(name.split("-")[0], auto_augment_transform)
    made: Callable[[Image.Image], Image.Image] = make(name, settings)
    return made


def _by_policy(image: Tensor, name: str) -> Tensor:
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    changed = _policy(name, image.shape[1])(picture)
    return torch.from_numpy(np.array(changed)).permute(2, 0, 1)


def _jittered(image: Tensor, amount: float) -> Tensor:
    from torchvision.transforms import ColorJitter

    jittered: Tensor = ColorJitter(amount, amount, amount)(image)
    return jittered


def _erased(image: Tensor, probability: float) -> Tensor:
    """The noise is normal where images are normalised, as timm has it, and cut at black and white.

    timm erases floats; an empty canvas shows what it drew, and where.
    """
    canvas = torch.full(image.shape, torch.nan)
    noise = RandomErasing(probability, mode="pixel", device="cpu")(canvas)
    mean, std = (
        torch.tensor(values).view(3, 1, 1)
        for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    )
    bytes_ = ((noise * std + mean) * 255).clamp(0, 255).round()
    return torch.where(noise.isnan(), image, bytes_.nan_to_num().to(torch.uint8))


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
