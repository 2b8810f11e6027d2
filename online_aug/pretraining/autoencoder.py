"""The autoencoder of the embedded models: latents of zero mean and unit variance."""

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from online_aug.generation.tiny import new_autoencoder
from online_aug.pretraining.corpus import Corpus, to_model
from online_aug.pretraining.loop import Settings, training_steps
from online_aug.seeding import numpy_rng

DIGIT_SHARE = 0.15
"""Share of digits in a batch; they are the easy part."""


def train_autoencoder(corpus: Corpus, settings: Settings) -> AutoencoderKL:
    """An autoencoder whose latents have zero mean and unit variance in every channel.

    One that is given and not trained on stays as it is.
    """
    if settings.autoencoder is None:
        vae = new_autoencoder().to(settings.device)
    else:
        taken = AutoencoderKL.from_pretrained(settings.autoencoder, subfolder="vae")
        vae = taken.to(settings.device, torch.float32)
    if not settings.vae_steps:
        return vae.eval()
    done = settings.work / "autoencoder.safetensors"
    if done.exists():
        vae.load_state_dict(load_file(done))
        return vae.eval()
    optimizer = torch.optim.AdamW(vae.parameters(), lr=2e-3, weight_decay=1e-4)
    for step in training_steps("autoencoder", vae, optimizer, settings, settings.vae_steps, 2e-3):
        rng = numpy_rng("autoencoder", settings.seed, step.number)
        indices, _ = corpus.draw(settings.batch_size // 2, DIGIT_SHARE, rng)
        images = to_model(corpus.images[indices]).to(settings.device)
        noise_rng = torch.Generator(settings.device).manual_seed(int(rng.integers(2**31)))
        posterior = vae.encode(images).latent_dist
        output = vae.decode(posterior.sample(noise_rng)).sample
        step.finish(_reconstruction(output, images) + 1e-4 * posterior.kl().mean() / 1024)
    vae.eval()
    _normalise_latents(vae, encode(vae, corpus, settings.device, limit=2048))
    save_file(vae.state_dict(), done)
    return vae


@torch.no_grad()
def encode(
    vae: AutoencoderKL, corpus: Corpus, device: str, limit: int | None = None
) -> Float[Tensor, "n 4 16 16"]:
    """Mean latents of the corpus; of `limit` pictures spread over it where given."""
    images = corpus.images
    if limit is not None and limit < len(images):
        images = images[torch.linspace(0, len(images) - 1, limit).long()]
    batches = tqdm(images.split(64), desc="encode", unit="batch")
    return torch.cat(
        [vae.encode(to_model(batch).to(device)).latent_dist.mean.cpu() for batch in batches]
    )


def _reconstruction(output: Tensor, images: Tensor) -> Tensor:
    """Absolute error of values and of differences between neighbours, which keeps edges sharp."""
    loss = F.l1_loss(output, images)
    for axis in (2, 3):
        loss = loss + 0.5 * F.l1_loss(output.diff(dim=axis), images.diff(dim=axis))
    return loss


@torch.no_grad()
def _normalise_latents(vae: AutoencoderKL, latents: Tensor) -> None:
    """Fold mean and spread of the latents into the 1x1 convolutions around them.

    Stable Diffusion has a single `scaling_factor`; with the statistics in the weights it is 1.
    """
    device = vae.device
    mean, std = latents.mean((0, 2, 3)).to(device), latents.std((0, 2, 3)).to(device)
    inner, outer = vae.post_quant_conv, vae.quant_conv
    inner.bias += (inner.weight[:, :, 0, 0] * mean).sum(1)
    inner.weight *= std[None, :, None, None]
    channels = len(mean)
    outer.weight[:channels] /= std[:, None, None, None]
    outer.bias[:channels] = (outer.bias[:channels] - mean) / std
    outer.bias[channels:] -= 2 * std.log()
    # the log-variance shares no weights with the mean, so only its bias moves
