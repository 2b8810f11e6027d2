"""The objective of one step: images drawn, their latents, the noise on them, the loss."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, StableDiffusionImg2ImgPipeline
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from online_aug.data.transforms import resize_shortest
from online_aug.distributed.world import World
from online_aug.seeding import torch_rng

MAX_KEPT_LATENTS = 20_000


@dataclass(frozen=True)
class RandomSquare:
    """A square anywhere in an image whose shortest side has its size."""

    side: int
    """Size of the square, px."""

    def __call__(
        self, image: UInt8[Tensor, "3 h w"], rng: torch.Generator
    ) -> UInt8[Tensor, "3 s s"]:
        """Cut a square whose place `rng` draws."""
        image = resize_shortest(image, self.side)
        draws = torch.rand(2, generator=rng, dtype=torch.float64).tolist()
        free = [length - self.side + 1 for length in image.shape[1:]]
        top, left = (int(draw * places) for draw, places in zip(draws, free, strict=True))
        return image[:, top : top + self.side, left : left + self.side]


@dataclass(frozen=True, kw_only=True)
class Examples:
    """The training images as fine-tuning reads them."""

    load: Callable[[int], UInt8[Tensor, "3 h w"]]
    """Returns the image of an index, at the resolution to learn from unless it is cut."""
    labels: Int[np.ndarray, " n"]
    hflip: float
    """Probability of a horizontal flip, [0, 1]."""
    cut: RandomSquare | None = None
    """Cuts another square of the image at each step; None learns from the whole image."""
    samples_latents: bool = False
    """Whether a latent is a sample of the encoder's Gaussian, instead of its mean."""

    @property
    def are_random(self) -> bool:
        """Whether two looks at the same image differ."""
        return self.cut is not None or self.samples_latents


@dataclass(frozen=True, kw_only=True)
class Draw:
    """The images of one step."""

    indices: Int[np.ndarray, " b"]
    is_flipped: Bool[np.ndarray, " b"]
    seeds: Int[np.ndarray, " b"] | None = None
    """Seed of each image's cut and latent; None if nothing about them is random."""

    def part(self, world: World) -> "Draw":
        """Return the images of one rank."""
        mine = slice(world.rank, None, world.world_size)
        seeds = None if self.seeds is None else self.seeds[mine]
        return Draw(indices=self.indices[mine], is_flipped=self.is_flipped[mine], seeds=seeds)


class Sampler:
    """Draws images of one class or of all classes, with replacement."""

    def __init__(self, examples: Examples, class_balance: float) -> None:
        """Weigh every image.

        Args:
            examples: The images to draw from.
            class_balance: An image of a class of n has the weight 1 / n^class_balance, as in
                Diff-Mix's long-tail fine-tuning (`weighted_alpha` there, 1 by default).
        """
        self._examples = examples
        counts = np.bincount(examples.labels).astype(np.float64)
        self._weights = counts[examples.labels] ** -class_balance if class_balance else None

    def draw(self, size: int, label: int | None, rng: np.random.Generator) -> Draw:
        """Draw `size` images of a class, or of all classes if `label` is None."""
        pool = np.arange(len(self._examples.labels))
        if label is not None:
            pool = pool[self._examples.labels == label]
        if self._weights is None or label is not None:  # within a class all weigh the same
            indices = pool[rng.integers(len(pool), size=size)]
        else:
            indices = rng.choice(pool, size=size, p=self._weights / self._weights.sum())
        is_flipped = rng.random(size) < self._examples.hflip
        seeds = rng.integers(2**63, size=size) if self._examples.are_random else None
        return Draw(indices=indices, is_flipped=is_flipped, seeds=seeds)


class Latents:
    """Scaled latents of the images; what is not random is encoded on first use and kept."""

    def __init__(self, vae: Any, examples: Examples) -> None:
        self._vae = vae
        self._examples = examples
        self._kept: dict[tuple[int, bool], tuple[Tensor, Tensor]] = {}

    def batch(self, drawn: Draw) -> tuple[Float[Tensor, "b c h w"], Int[Tensor, " b"]]:
        """Return latents and labels of the drawn images, on the autoencoder's device."""
        seeds = [0] * len(drawn.indices) if drawn.seeds is None else drawn.seeds.tolist()
        triples = zip(drawn.indices.tolist(), drawn.is_flipped.tolist(), seeds, strict=True)
        latents = [self._latent(*triple) for triple in triples]
        labels = torch.from_numpy(self._examples.labels[drawn.indices])
        return torch.stack(latents).to(self._vae.device), labels.to(self._vae.device)

    def _latent(self, index: int, is_flipped: bool, seed: int) -> Float[Tensor, "c h w"]:
        rng, cut = torch_rng(seed), self._examples.cut
        if cut is not None:
            mean, deviation = self._encoded(cut(self._examples.load(index), rng), is_flipped)
        else:
            mean, deviation = self._whole(index, is_flipped)
        if self._examples.samples_latents:
            mean = mean + deviation * torch.randn(mean.shape, generator=rng)
        return mean

    def _whole(self, index: int, is_flipped: bool) -> tuple[Tensor, Tensor]:
        if (found := self._kept.get((index, is_flipped))) is not None:
            return found
        found = self._encoded(self._examples.load(index), is_flipped)
        if len(self._kept) < MAX_KEPT_LATENTS:
            self._kept[index, is_flipped] = found
        return found

    @torch.no_grad()
    def _encoded(self, image: UInt8[Tensor, "3 s s"], is_flipped: bool) -> tuple[Tensor, Tensor]:
        """Return mean and deviation of the scaled latent on the CPU; no deviation if not asked."""
        pixels = image.float().to(self._vae.device) / 127.5 - 1
        pixels = pixels.flip(-1) if is_flipped else pixels
        gaussian = self._vae.encode(pixels.unsqueeze(0)).latent_dist
        scale = self._vae.config.scaling_factor
        deviation = gaussian.std[0] if self._examples.samples_latents else torch.zeros(())
        return (scale * gaussian.mean[0]).cpu(), (scale * deviation).cpu()


class Corruption(NamedTuple):
    """The noise on the latents of a step, and how much of it."""

    noise: Float[Tensor, "b c h w"]
    times: Int[Tensor, " b"]
    """Time steps of the forward process, which say how much."""

    def part(self, world: World) -> "Corruption":
        """Return the noise of one rank's images, on its device."""
        mine = slice(world.rank, None, world.world_size)
        return Corruption(self.noise[mine].to(world.device), self.times[mine].to(world.device))


def draw_corruption(
    shape: tuple[int, ...], scheduler: DDPMScheduler, rng: np.random.Generator
) -> Corruption:
    """Draw noise and time steps of a step on the CPU: the same numbers on every machine.

    Args:
        shape: Shape of all latents of the step, b c h w.
        scheduler: The forward process.
        rng: Decides them.
    """
    noise_rng = torch_rng(int(rng.integers(2**63)))
    noise = torch.randn(shape, generator=noise_rng)
    levels = scheduler.config.num_train_timesteps
    return Corruption(noise, torch.randint(0, levels, shape[:1], generator=noise_rng))


def denoising_loss(
    pipeline: StableDiffusionImg2ImgPipeline,
    scheduler: DDPMScheduler,
    ids: Int[Tensor, "k t"],
    batch: tuple[Float[Tensor, "b c h w"], Int[Tensor, " b"]],
    corruption: Corruption,
    min_snr_gamma: float | None = None,
) -> Float[Tensor, ""]:
    """Return the mean squared error on what the network was trained to predict.

    Args:
        pipeline: Has the U-Net and the text encoder.
        scheduler: The forward process.
        ids: Token ids of the prompt of each class, by label.
        batch: Scaled latents and labels.
        corruption: Noise and time step of each, on their device.
        min_snr_gamma: Weigh noise levels by Min-SNR; None weighs all alike.
    """
    clean, labels = batch
    noise, times = corruption
    is_velocity = scheduler.config.prediction_type == "v_prediction"
    wanted = scheduler.get_velocity(clean, noise, times) if is_velocity else noise
    classes, of_sample = labels.unique(return_inverse=True)
    words = pipeline.text_encoder(ids[classes])[0][of_sample]
    dtype = pipeline.unet.dtype
    noisy = scheduler.add_noise(clean, noise, times).to(dtype)
    output = pipeline.unet(noisy, times, words.to(dtype)).sample.float()
    if min_snr_gamma is None:
        return F.mse_loss(output, wanted)
    errors = F.mse_loss(output, wanted, reduction="none").flatten(1).mean(1)
    return (errors * min_snr_weights(scheduler, times, min_snr_gamma)).mean()


def min_snr_weights(
    scheduler: DDPMScheduler, times: Int[Tensor, " b"], gamma: float
) -> Float[Tensor, " b"]:
    """Weigh the errors at these time steps by Min-SNR (arXiv:2303.09556, section 3.4).

    The error of the clean image that a prediction stands for is weighed by `min(SNR, gamma)`. For
    noise that is `min(SNR, gamma) / SNR`, for velocity `min(SNR, gamma) / (SNR + 1)`; with
    `SNR = a / (1 - a)` neither needs a quotient of infinities, and a schedule that ends in pure
    noise (a = 0, arXiv:2305.08891) has the limits 1 and 0 there.

    Args:
        scheduler: The forward process and what the network predicts.
        times: Time steps of the forward process.
        gamma: Largest weight, above 0; the paper takes 5.
    """
    a: Tensor = scheduler.alphas_cumprod.to(times.device)[times].float()
    if scheduler.config.prediction_type == "v_prediction":
        return torch.minimum(a, gamma * (1 - a))
    return (gamma * (1 - a) / a).clamp(max=1)
