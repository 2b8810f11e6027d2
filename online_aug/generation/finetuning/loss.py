"""How wrong a denoiser is about the training images."""

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, StableDiffusionImg2ImgPipeline
from jaxtyping import Float, Int
from torch import Tensor

from online_aug.seeding import torch_rng


def denoising_loss(
    pipeline: StableDiffusionImg2ImgPipeline,
    scheduler: DDPMScheduler,
    ids: Int[Tensor, "k t"],
    batch: tuple[Float[Tensor, "b c h w"], Int[Tensor, " b"]],
    rng: np.random.Generator,
    min_snr_gamma: float | None = None,
) -> Float[Tensor, ""]:
    """Mean squared error at random noise levels, on what the network was trained to predict.

    Args:
        pipeline: U-Net and text encoder.
        scheduler: The forward process.
        ids: Tokens of the prompt of each class, by label.
        batch: Scaled latents and labels.
        rng: Decides noise and noise levels.
        min_snr_gamma: Weigh noise levels by Min-SNR; None weighs all alike.
    """
    clean, labels = batch
    noise_rng = torch_rng(int(rng.integers(2**63)))
    noise = torch.randn(clean.shape, generator=noise_rng).to(clean)
    times = torch.randint(
        0, scheduler.config.num_train_timesteps, labels.shape, generator=noise_rng
    )
    times = times.to(clean.device)
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
