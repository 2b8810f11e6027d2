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
) -> Float[Tensor, ""]:
    """Mean squared error at random noise levels, on what the network was trained to predict.

    Args:
        pipeline: U-Net and text encoder.
        scheduler: The forward process.
        ids: Tokens of the prompt of each class, by label.
        batch: Scaled latents and labels.
        rng: Decides noise and noise levels.
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
    output = pipeline.unet(scheduler.add_noise(clean, noise, times), times, words).sample
    return F.mse_loss(output, wanted)
