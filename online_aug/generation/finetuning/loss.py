"""How wrong a denoiser is about the training images."""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, StableDiffusionImg2ImgPipeline
from jaxtyping import Float, Int
from torch import Tensor

from online_aug.seeding import torch_rng
from online_aug.training.distributed import World


class Corruption(NamedTuple):
    """How the latents of a step are made noisy."""

    noise: Float[Tensor, "b c h w"]
    times: Int[Tensor, " b"]
    """Steps of the forward process."""

    def part(self, world: World) -> "Corruption":
        """Those of one rank, on its device."""
        mine = slice(world.rank, None, world.world_size)
        return Corruption(self.noise[mine].to(world.device), self.times[mine].to(world.device))


def draw_corruption(
    shape: tuple[int, ...], scheduler: DDPMScheduler, rng: np.random.Generator
) -> Corruption:
    """Noise and noise levels of a step, on the CPU: the same numbers on every machine.

    Args:
        shape: Of all latents of the step, b c h w.
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
    """Mean squared error at some noise levels, on what the network was trained to predict.

    Args:
        pipeline: U-Net and text encoder.
        scheduler: The forward process.
        ids: Tokens of the prompt of each class, by label.
        batch: Scaled latents and labels.
        corruption: Noise and noise level of each, on their device.
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
    """Weights of the errors at these noise levels by Min-SNR (arXiv:2303.09556, section 3.4).

    The error of the clean image that a prediction stands for is weighed by `min(SNR, gamma)`. For
    noise that is `min(SNR, gamma) / SNR`, for velocity `min(SNR, gamma) / (SNR + 1)`; with
    `SNR = a / (1 - a)` neither needs a quotient of infinities, and a schedule that ends in pure
    noise (a = 0, arXiv:2305.08891) has the limits 1 and 0 there.

    Args:
        scheduler: The forward process and what the network predicts.
        times: Steps of the forward process.
        gamma: Largest weight, above 0; the paper takes 5.
    """
    a: Tensor = scheduler.alphas_cumprod.to(times.device)[times].float()
    if scheduler.config.prediction_type == "v_prediction":
        return torch.minimum(a, gamma * (1 - a))
    return (gamma * (1 - a) / a).clamp(max=1)
