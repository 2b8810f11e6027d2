"""Image transforms on uint8 tensors, the same for real and synthetic images.

A training image is cut to a square (`Frame`), moved in one interpolation (`warp`), and changed in
colour (`Colours`). All randomness comes from the generator or seed that is passed in, so a sample
is a function of its seed alone.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps
from torch import Tensor

from online_aug.data.settings import DataConfig
from online_aug.errors import UserError
from online_aug.seeding import library_state

# timm takes seconds to import, and the generation process, which reads images too, has no other use
# for it: the functions that draw timm's changes import it.

Resize = Literal["squash", "shortest", "longest"]
Crop = Literal["centre", "random", "resized"]

_CROP_TRIES = 10
_NARROWEST, _WIDEST = 3 / 4, 4 / 3
_LARGEST_TRANSLATION = 0.45
"""Fraction of the side; timm's value for RandAugment and AutoAugment."""


@dataclass(frozen=True, kw_only=True)
class Frame:
    """Which part of an image becomes the square that the classifier sees."""

    size: int
    """Side of the square, px."""
    resize: Resize = "squash"
    """Which side is resized to `resize_px`: both, the shortest or the longest."""
    resize_px: int | None = None
    """Side after resizing, px; None is `size`, which leaves nothing of a squashed image to cut."""
    crop: Crop = "centre"
    """Where training images are cut: in the middle, anywhere, or a part of any area, which is then
    resized to the square."""
    pad_px: int = 0
    """Black border added before a random crop, px."""
    area: tuple[float, float] = (0.08, 1.0)
    """Smallest and largest fraction of the image that a `resized` crop takes."""

    def central(self, image: UInt8[Tensor, "3 h w"]) -> UInt8[Tensor, "3 s s"]:
        """Cut the middle, halves rounded to even as torchvision's are; black borders if small."""
        image = _padded(self._resized(image), self.size)
        top, left = (round((side - self.size) / 2) for side in image.shape[1:])
        return image[:, top : top + self.size, left : left + self.size]

    def random(self, image: UInt8[Tensor, "3 h w"], rng: torch.Generator) -> UInt8[Tensor, "3 s s"]:
        """Cut the part that `crop` asks for, drawing its place and size from `rng`."""
        if self.crop == "centre":
            return self.central(image)
        if self.crop == "resized":
            top, left, height, width = _random_box(image.shape[1:], self.area, rng)
            return fit_square(image[:, top : top + height, left : left + width], self.size)
        image = _padded(F.pad(self._resized(image), [self.pad_px] * 4), self.size)
        draws = torch.rand(2, generator=rng, dtype=torch.float64).tolist()
        free = [side - self.size + 1 for side in image.shape[1:]]
        top, left = (int(draw * places) for draw, places in zip(draws, free, strict=True))
        return image[:, top : top + self.size, left : left + self.size]

    @property
    def follows_aspect(self) -> bool:
        """Whether what is cut depends on the aspect of the image."""
        return self.resize != "squash" or self.crop == "resized"

    def _resized(self, image: UInt8[Tensor, "3 h w"]) -> UInt8[Tensor, "3 a b"]:
        side, (height, width) = self.resize_px or self.size, image.shape[1:]
        if self.resize == "squash":
            return fit_square(image, side)
        if self.resize == "shortest":
            return resize_shortest(image, side)
        scale = side / max(height, width)
        return resize(image, max(1, round(height * scale)), max(1, round(width * scale)))


def fit_square(image: UInt8[Tensor, "3 h w"], size: int) -> UInt8[Tensor, "3 s s"]:
    """Resize an image to a square of `size` px, bilinear with antialiasing, ignoring its aspect.

    What the classifier, the teacher, the image generator and the gallery see is made here. An image
    of that size is returned as it is.
    """
    return resize(image, size, size)


def resize(image: UInt8[Tensor, "3 h w"], height: int, width: int) -> UInt8[Tensor, "3 a b"]:
    """Resize an image, bilinear with antialiasing; one of that size is returned as it is."""
    if image.shape[1:] == (height, width):
        return image
    # PyTorch's uint8 kernel is fastest in this memory format; the pixels are the same in both.
    batch = image.unsqueeze(0).contiguous(memory_format=torch.channels_last)
    return F.interpolate(batch, (height, width), mode="bilinear", antialias=True)[0]


def resize_shortest(image: UInt8[Tensor, "3 h w"], side: int) -> UInt8[Tensor, "3 a b"]:
    """Resize the shortest side to `side`; the other is rounded down, as torchvision does."""
    height, width = (side * length // min(image.shape[1:]) for length in image.shape[1:])
    return resize(image, height, width)


def _padded(image: UInt8[Tensor, "3 h w"], least: int) -> UInt8[Tensor, "3 a b"]:
    missing = [max(0, least - side) for side in image.shape[1:]]
    if not any(missing):
        return image
    (top, left), (bottom, right) = ([n // 2 for n in missing], [n - n // 2 for n in missing])
    return F.pad(image, [left, right, top, bottom])


def _random_box(
    sides: Sequence[int], area: tuple[float, float], rng: torch.Generator
) -> tuple[int, int, int, int]:
    """Draw top, left, height and width of a crop, as Inception and timm do.

    If ten crops in a row do not fit, take the largest one of an allowed aspect in the middle.
    """
    height, width = sides
    for _ in range(_CROP_TRIES):
        draws = torch.rand(4, generator=rng, dtype=torch.float64).tolist()
        pixels = height * width * (area[0] + draws[0] * (area[1] - area[0]))
        ratio = _NARROWEST * (_WIDEST / _NARROWEST) ** draws[1]
        h, w = round(math.sqrt(pixels / ratio)), round(math.sqrt(pixels * ratio))
        if 0 < h <= height and 0 < w <= width:
            return int(draws[2] * (height - h + 1)), int(draws[3] * (width - w + 1)), h, w
    h = min(height, max(1, round(width / _NARROWEST)))
    w = min(width, max(1, round(height * _WIDEST)))
    return (height - h) // 2, (width - w) // 2, h, w


def warp(image: UInt8[Tensor, "3 s s"], theta: Float[Tensor, "2 3"]) -> UInt8[Tensor, "3 s s"]:
    """Move an image in one bilinear interpolation; its border fills what moves in.

    Args:
        image: The image.
        theta: Affine map from positions in the result to positions in the image, both in [-1, 1].
    """
    batch = image.unsqueeze(0).float()
    grid = F.affine_grid(theta.unsqueeze(0), list(batch.shape), align_corners=False)
    moved = F.grid_sample(batch, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return moved[0].round_().to(torch.uint8)


def _inverse_motion(
    *, flip: bool, angle: float, zoom: float, shift: tuple[float, float]
) -> Float[Tensor, "2 3"]:
    """Invert: flip, zoom, rotate by `angle` radians, then shift by fractions of the side."""
    cos, sin = math.cos(angle) / zoom, math.sin(angle) / zoom
    x, y = 2 * shift[0], 2 * shift[1]  # the side spans [-1, 1]
    first, second = [cos, sin, -cos * x - sin * y], [-sin, cos, sin * x - cos * y]
    return torch.tensor([[-value for value in first] if flip else first, second])


@dataclass(frozen=True, kw_only=True)
class Colours:
    """Changes of a square image by timm's policies, colour jitter and random erasing."""

    policy: str | None = None
    """timm's name of a RandAugment, AutoAugment or AugMix policy; None is off."""
    jitter: float | None = None
    """Largest change of brightness, contrast and saturation, as a factor around 1; None is off."""
    erase: float = 0.0
    """Probability that a rectangle is replaced by noise."""

    def __call__(self, image: UInt8[Tensor, "3 s s"], seed: int) -> UInt8[Tensor, "3 s s"]:
        """Change an image by what `seed` draws; global random states are left alone."""
        if self == Colours():
            return image
        with library_state(seed):
            if self.policy is not None:
                image = _apply_policy(image, self.policy)
            if self.jitter is not None:
                image = _jitter(image, self.jitter)
            return _erase(image, self.erase) if self.erase else image


def check_policy(data: DataConfig) -> None:
    """Raise if timm cannot read `data.auto_augment`.

    Raises:
        UserError: If it is not a policy of timm.
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
    from timm.data import IMAGENET_DEFAULT_MEAN, auto_augment

    grey = tuple(round(255 * value) for value in IMAGENET_DEFAULT_MEAN)
    settings = {"translate_const": int(size * _LARGEST_TRANSLATION), "img_mean": grey}
    kinds = {
        "rand": auto_augment.rand_augment_transform,
        "augmix": auto_augment.augment_and_mix_transform,
    }
    make = kinds.get(name.split("-")[0], auto_augment.auto_augment_transform)
    made: Callable[[Image.Image], Image.Image] = make(name, settings)
    rows = getattr(made, "policy", None) or [getattr(made, "ops", ())]
    for operation in (operation for row in rows for operation in row):
        if operation.aug_fn is auto_augment.posterize:
            operation.aug_fn = _posterize
    return made


def _posterize(image: Image.Image, bits: int, **_: object) -> Image.Image:
    """Keep one bit at least: at high magnitudes timm asks for none, which Pillow refuses."""
    return ImageOps.posterize(image, max(bits, 1)) if bits < 8 else image


def _apply_policy(image: Tensor, name: str) -> Tensor:
    pil_image = Image.fromarray(image.permute(1, 2, 0).numpy())
    changed = _policy(name, image.shape[1])(pil_image)
    return torch.from_numpy(np.array(changed)).permute(2, 0, 1)


def _jitter(image: Tensor, amount: float) -> Tensor:
    from torchvision.transforms import ColorJitter

    jittered: Tensor = ColorJitter(amount, amount, amount)(image)
    return jittered


def _erase(image: Tensor, probability: float) -> Tensor:
    from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    from timm.data.random_erasing import RandomErasing

    # timm erases normalised floats with normal noise. Erasing a tensor of NaN shows which pixels
    # were drawn; their noise is brought back to bytes, clipped at black and white.
    canvas = torch.full(image.shape, torch.nan)
    noise = RandomErasing(probability, mode="pixel", device="cpu")(canvas)
    mean, std = (
        torch.tensor(values).view(3, 1, 1)
        for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    )
    bytes_ = ((noise * std + mean) * 255).clamp(0, 255).round()
    return torch.where(noise.isnan(), image, bytes_.nan_to_num().to(torch.uint8))


@dataclass(frozen=True, kw_only=True)
class EvalTransform:
    """The fixed transform of validation and test images: the middle of the resized image."""

    frame: Frame

    def __call__(
        self, image: UInt8[Tensor, "3 h w"], rng: torch.Generator | None = None
    ) -> UInt8[Tensor, "3 s s"]:
        """Return the image at the size the classifier sees; `rng` is not used."""
        return self.frame.central(image)


@dataclass(frozen=True, kw_only=True)
class TrainTransform:
    """The random transform of training images: crop, then move, then change colours."""

    frame: Frame
    shift: float
    """Largest shift in x and in y, as a fraction of the side."""
    rotate_degrees: float
    """Largest rotation in either direction, degrees."""
    scale: tuple[float, float]
    """Smallest and largest zoom; above 1 enlarges."""
    hflip: float
    """Probability of a horizontal flip."""
    colours: Colours = Colours()

    def __call__(
        self, image: UInt8[Tensor, "3 h w"], rng: torch.Generator
    ) -> UInt8[Tensor, "3 s s"]:
        """Return a random view of the image, drawn from `rng`."""
        # The same number of draws whatever the settings: changing one does not change the others.
        draws = torch.rand(5, generator=rng, dtype=torch.float64).tolist()
        seed = int(torch.randint(2**32, (), generator=rng))
        return self.colours(self._moved(self.frame.random(image, rng), draws), seed)

    def _moved(self, image: UInt8[Tensor, "3 s s"], draws: list[float]) -> UInt8[Tensor, "3 s s"]:
        flip = draws[0] < self.hflip
        angle = math.radians((2 * draws[1] - 1) * self.rotate_degrees)
        zoom = self.scale[0] + draws[2] * (self.scale[1] - self.scale[0])
        x, y = ((2 * draw - 1) * self.shift for draw in draws[3:])
        if angle == 0 and zoom == 1 and x == 0 and y == 0:
            return image.flip(2) if flip else image
        return warp(image, _inverse_motion(flip=flip, angle=angle, zoom=zoom, shift=(x, y)))


def train_transform(data: DataConfig) -> TrainTransform:
    """Build the transform of training images from the configuration."""
    return TrainTransform(
        frame=frame_of(data),
        shift=data.shift,
        rotate_degrees=data.rotate_degrees,
        scale=data.scale,
        hflip=data.hflip,
        colours=Colours(policy=data.auto_augment, jitter=data.colour_jitter, erase=data.erase),
    )


def eval_transform(data: DataConfig) -> EvalTransform:
    """Build the transform of validation and test images from the configuration."""
    return EvalTransform(frame=frame_of(data))


def frame_of(data: DataConfig) -> Frame:
    """Return the part of an image that the configuration shows to the classifier."""
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
    """Convert images to the float32 input of a classifier, on their own device.

    Args:
        images: Bytes.
        mean: Mean of each channel for values in [0, 1], as in timm.
        std: Standard deviation of each channel, likewise.
    """
    spread = torch.tensor(std, device=images.device).view(3, 1, 1)
    centre = torch.tensor(mean, device=images.device).view(3, 1, 1)
    return torch.addcmul(-centre / spread, images.float(), 1 / (255 * spread))


def to_bytes(image: Float[Tensor, "3 h w"]) -> UInt8[Tensor, "3 h w"]:
    """Round an image in [0, 1] to the 8 bits in which it is stored."""
    return (image * 255).round().clamp(0, 255).to(torch.uint8)
