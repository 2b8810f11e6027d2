"""timm's and torchvision's transforms of colours and parts, on uint8 tensors and by a seed."""

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

from online_aug.config_data import DataConfig
from online_aug.errors import UserError
from online_aug.seeding import library_state

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
