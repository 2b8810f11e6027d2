"""Train the autoencoder, then the denoiser with its text encoder; both save and resume."""

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.training_utils import EMAModel
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from online_aug.console import counted, progress
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
from tools.embedded_model.corpus import Corpus, Task, to_model

SAVE_STEPS = 250
DIGIT_SHARE = 0.15
"""Share of digits in a batch; they are the easy part."""
BIRD_WEIGHT = 4.0
"""Loss weight of a latent cell on the bird; the background, mostly texture, has weight 1."""
UNIFORM_TIMES = 0.25
"""Share of time steps drawn uniformly; the others lie where the shape is decided."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything but the code that decides the result."""

    work: Path
    steps: int
    vae_steps: int
    batch_size: int
    lr: float
    digits: int
    birds: int
    seed: int
    device: str
    autoencoder: Path | None = None
    """Model directory whose autoencoder is trained further for `vae_steps`."""
    start: Path | None = None
    """Model directory of the same task, or folder of a LoRA, that is trained further."""
    trajectories: int = 0
    """Images that a model denoises, to distil it from."""


def train_autoencoder(corpus: Corpus, settings: Settings) -> AutoencoderKL:
    """Train an autoencoder whose latents have zero mean and unit variance in every channel.

    A given autoencoder with 0 steps stays as it is.
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
    """Return the mean latents of the corpus, or of `limit` images spread evenly over it."""
    images = corpus.images
    if limit is not None and limit < len(images):
        images = images[torch.linspace(0, len(images) - 1, limit).long()]
    batches = counted("encoding", images.split(64))
    return torch.cat(
        [vae.encode(to_model(batch).to(device)).latent_dist.mean.cpu() for batch in batches]
    )


def _reconstruction(output: Tensor, images: Tensor) -> Tensor:
    """Sum the absolute errors of values and of differences between neighbours, for sharp edges."""
    loss = F.l1_loss(output, images)
    for axis in (2, 3):
        loss = loss + 0.5 * F.l1_loss(output.diff(dim=axis), images.diff(dim=axis))
    return loss


@torch.no_grad()
def _normalise_latents(vae: AutoencoderKL, latents: Tensor) -> None:
    """Fold mean and spread of the latents into the 1x1 convolutions around them.

    Stable Diffusion has a single `scaling_factor`, which is 1 with the statistics in the weights.
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
    # The log-variance shares no weights with the mean, so only its bias changes.


def train_denoiser(
    task: Task, corpus: Corpus, vae: AutoencoderKL, settings: Settings, out: Path
) -> None:
    """Train U-Net and text encoder together on velocity, and save the averaged weights."""
    latents = latents_of(corpus, vae, settings)
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
    """Draw time steps from 0 to 999: logit-normal (arXiv:2403.03206, 3.1), some uniform."""
    middle = torch.sigmoid(0.4 + torch.randn(count, generator=rng))
    anywhere = torch.rand(count, generator=rng)
    is_uniform = torch.rand(count, generator=rng) < UNIFORM_TIMES
    return (1000 * torch.where(is_uniform, anywhere, middle)).long().clamp(max=999)


def latents_of(
    corpus: Corpus, vae: AutoencoderKL, settings: Settings
) -> Float[Tensor, "n 4 16 16"]:
    """Return the mean latents of the corpus; once encoded they are kept in the work folder."""
    done = settings.work / "latents.safetensors"
    if not done.exists():
        save_file({"latents": encode(vae, corpus, settings.device).contiguous()}, done)
    return load_file(done)["latents"]


class Step:
    """One optimizer step; `finish` does the backward pass and the update."""

    def __init__(self, number: int, optimizer: torch.optim.Optimizer) -> None:
        self.number = number
        self.loss = math.nan
        self._optimizer = optimizer

    def finish(self, loss: Tensor) -> None:
        """Do the backward pass, clip the gradients, update the weights."""
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        parameters = [p for group in self._optimizer.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        self._optimizer.step()
        self.loss = float(loss.detach())


def training_steps(
    name: str,
    parts: Any,
    optimizer: torch.optim.Optimizer,
    settings: Settings,
    total: int,
    lr: float,
) -> Iterator[Step]:
    """Iterate over the steps left, with learning rates, checkpoints, losses and a progress bar."""
    if not isinstance(parts, dict):
        parts = {"model": parts, "optimizer": optimizer}
    checkpoint = settings.work / f"{name}.pt"
    first = _resume(checkpoint, parts)
    losses: list[float] = []
    started = time.monotonic()
    with progress(name, total) as bar:
        bar.advance(first)
        for number in range(first, total):
            for group in optimizer.param_groups:
                group["lr"] = lr * _warm_flat_falling(number / total)
            step = Step(number, optimizer)
            yield step
            losses.append(step.loss)
            bar.advance()
            if (number + 1) % SAVE_STEPS == 0 or number + 1 == total:
                _log(settings.work, name, number + 1, losses, time.monotonic() - started)
                bar.note = f"loss {sum(losses) / len(losses):.4f}"
                losses, started = [], time.monotonic()
                _save(checkpoint, parts, number + 1)


def _warm_flat_falling(share: float) -> float:
    """Return the rate as a fraction of its peak: flat for the first 70 %, for longer trainings."""
    falling = max(0.0, (share - 0.7) / 0.3)
    return min(1.0, share / 0.02) * (0.5 + 0.5 * math.cos(math.pi * falling))


def _save(path: Path, parts: dict[str, Any], step: int) -> None:
    partial = path.with_suffix(".partial")
    torch.save({"step": step, **{k: part.state_dict() for k, part in parts.items()}}, partial)
    partial.replace(path)


def _resume(path: Path, parts: dict[str, Any]) -> int:
    if not path.exists():
        return 0
    saved = torch.load(path, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(saved[name])
    return int(saved["step"])


def _log(work: Path, name: str, step: int, losses: list[float], seconds: float) -> None:
    line = {"part": name, "step": step, "loss": sum(losses) / len(losses), "seconds": seconds}
    with (work / "losses.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
