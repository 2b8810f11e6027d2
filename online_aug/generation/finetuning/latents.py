"""The training images as fine-tuning draws them: latents, in batches, each encoded once."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from online_aug.training.distributed import World

MAX_KEPT_LATENTS = 20_000


@dataclass(frozen=True, kw_only=True)
class Examples:
    """The training images as fine-tuning reads them."""

    load: Callable[[int], UInt8[Tensor, "3 h w"]]
    """Picture by number, already at the generator's resolution."""
    labels: Int[np.ndarray, " n"]
    hflip: float
    """Probability of a horizontal flip, [0, 1]."""


@dataclass(frozen=True, kw_only=True)
class Draw:
    """The images of one step."""

    indices: Int[np.ndarray, " b"]
    is_flipped: Bool[np.ndarray, " b"]

    def part(self, world: World) -> "Draw":
        """Those of one rank."""
        mine = slice(world.rank, None, world.world_size)
        return Draw(indices=self.indices[mine], is_flipped=self.is_flipped[mine])


class Sampler:
    """Draws images of a class or of all, with replacement."""

    def __init__(self, examples: Examples, class_balance: float) -> None:
        """Weigh every image.

        Args:
            examples: What to draw from.
            class_balance: An image of a class of n has the weight 1 / n^class_balance, as in
                Diff-Mix's long-tail fine-tuning (`weighted_alpha` there, 1 by default).
        """
        self._examples = examples
        counts = np.bincount(examples.labels).astype(np.float64)
        self._weights = counts[examples.labels] ** -class_balance if class_balance else None

    def draw(self, size: int, label: int | None, rng: np.random.Generator) -> Draw:
        """So many images of this class, or of all where it is None."""
        pool = np.arange(len(self._examples.labels))
        if label is not None:
            pool = pool[self._examples.labels == label]
        if self._weights is None or label is not None:  # within a class all weigh the same
            indices = pool[rng.integers(len(pool), size=size)]
        else:
            indices = rng.choice(pool, size=size, p=self._weights / self._weights.sum())
        return Draw(indices=indices, is_flipped=rng.random(size) < self._examples.hflip)


class Latents:
    """Scaled source latents, encoded on first use and kept."""

    def __init__(self, vae: Any, examples: Examples) -> None:
        self._vae = vae
        self._examples = examples
        self._kept: dict[tuple[int, bool], Tensor] = {}

    def batch(self, drawn: Draw) -> tuple[Float[Tensor, "b c h w"], Int[Tensor, " b"]]:
        """Latents and labels of the drawn images, on the autoencoder's device."""
        pairs = zip(drawn.indices, drawn.is_flipped, strict=True)
        latents = [self._latent(int(index), bool(flip)) for index, flip in pairs]
        labels = torch.from_numpy(self._examples.labels[drawn.indices])
        return torch.stack(latents).to(self._vae.device), labels.to(self._vae.device)

    @torch.no_grad()
    def _latent(self, index: int, is_flipped: bool) -> Float[Tensor, "c h w"]:
        if (index, is_flipped) in self._kept:
            return self._kept[index, is_flipped]
        image = self._examples.load(index).float().to(self._vae.device) / 127.5 - 1
        image = image.flip(-1) if is_flipped else image
        latent: Tensor = self._vae.encode(image.unsqueeze(0)).latent_dist.mean[0]
        latent = (latent * self._vae.config.scaling_factor).cpu()
        if len(self._kept) < MAX_KEPT_LATENTS:
            self._kept[index, is_flipped] = latent
        return latent
