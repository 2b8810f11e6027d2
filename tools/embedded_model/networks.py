"""The denoiser and its text encoder, trained together for one of the tasks.

The autoencoder of the embedded models: latents of zero mean and unit variance.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.training_utils import EMAModel
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm
from transformers import CLIPTextModel, CLIPTokenizer

from online_aug.seeding import numpy_rng
from tools.embedded_model.architecture import (
    MAX_TOKENS,
    new_autoencoder,
    new_scheduler,
    new_text_encoder,
    new_tokenizer,
    new_unet,
    save_pipeline,
)
from tools.embedded_model.corpus import Corpus, to_model
from tools.embedded_model.loop import Settings, Task, training_steps

BIRD_WEIGHT = 4.0
"""Loss weight of a latent on the bird against one of the background, most of which is texture."""
UNIFORM_TIMES = 0.25
"""Share of time steps drawn uniformly; the others lie where the shape is decided."""


def train_denoiser(
    task: Task, corpus: Corpus, vae: AutoencoderKL, settings: Settings, out: Path
) -> None:
    """Train U-Net and text encoder together on velocity, and save the averaged weights."""
    latents = _latents(corpus, vae, settings)
    tokenizer, model = _first_model(task, corpus, settings)
    model.to(settings.device).train()
    scheduler = new_scheduler()
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, weight_decay=1e-2)
    average = EMAModel(model.parameters(), decay=0.999, use_ema_warmup=True, power=0.75)
    parts = {"model": model, "optimizer": optimizer, "average": average}
    for step in training_steps("denoiser", parts, optimizer, settings, settings.steps, settings.lr):
        rng = numpy_rng("denoiser", settings.seed, step.number)
        torch_rng = torch.Generator().manual_seed(int(rng.integers(2**31)))
        lesson = task.draw(corpus, latents, settings.batch_size, rng)
        tokens = tokenizer(
            lesson.captions,
            padding="max_length",
            max_length=MAX_TOKENS,
            truncation=True,
            return_tensors="pt",
        )
        noise = torch.randn(lesson.clean.shape, generator=torch_rng)
        times = _times(len(noise), torch_rng)
        noisy = torch.cat([scheduler.add_noise(lesson.clean, noise, times), lesson.condition], 1)
        velocity = scheduler.get_velocity(lesson.clean, noise, times).to(settings.device)
        words = model["text"](tokens.input_ids.to(settings.device))[0]
        output = model["unet"](noisy.to(settings.device), times.to(settings.device), words).sample
        weights = 1 + (BIRD_WEIGHT - 1) * lesson.coverage.to(settings.device)
        step.finish((weights * (output - velocity).square()).sum() / (4 * weights.sum()))
        average.step(model.parameters())
    average.copy_to(model.parameters())
    save_pipeline(out, vae=vae, unet=model["unet"], text_encoder=model["text"], tokenizer=tokenizer)


def _first_model(
    task: Task, corpus: Corpus, settings: Settings
) -> tuple[CLIPTokenizer, torch.nn.ModuleDict]:
    if (start := settings.start) is not None:
        unet = UNet2DConditionModel.from_pretrained(start / "unet", torch_dtype=torch.float32)
        text = CLIPTextModel.from_pretrained(start / "text_encoder", dtype=torch.float32)
        tokenizer = CLIPTokenizer.from_pretrained(start / "tokenizer")
    else:
        tokenizer = new_tokenizer(caption for captions in corpus.captions for caption in captions)
        torch.manual_seed(settings.seed)
        unet = new_unet(condition_channels=task.condition_channels)
        text = new_text_encoder(tokenizer)
    return tokenizer, torch.nn.ModuleDict({"unet": unet, "text": text})


def _times(count: int, rng: torch.Generator) -> Int[Tensor, " count"]:
    """Time steps from 0 to 999: a logit-normal (arXiv:2403.03206, 3.1) with some uniform ones."""
    middle = torch.sigmoid(0.4 + torch.randn(count, generator=rng))
    anywhere = torch.rand(count, generator=rng)
    is_uniform = torch.rand(count, generator=rng) < UNIFORM_TIMES
    return (1000 * torch.where(is_uniform, anywhere, middle)).long().clamp(max=999)


def _latents(corpus: Corpus, vae: AutoencoderKL, settings: Settings) -> Tensor:
    done = settings.work / "latents.safetensors"
    if not done.exists():
        save_file({"latents": encode(vae, corpus, settings.device).contiguous()}, done)
    return load_file(done)["latents"]


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
