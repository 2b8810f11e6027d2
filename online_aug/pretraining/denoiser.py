"""The denoiser and its text encoder, trained together for one of the tasks."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.training_utils import EMAModel
from jaxtyping import Int
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from online_aug.generation.tiny import (
    MAX_TOKENS,
    new_scheduler,
    new_text_encoder,
    new_tokenizer,
    new_unet,
    save_pipeline,
)
from online_aug.pretraining.autoencoder import encode
from online_aug.pretraining.corpus import Corpus
from online_aug.pretraining.loop import Settings, training_steps
from online_aug.pretraining.tasks import Task
from online_aug.seeding import numpy_rng

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
