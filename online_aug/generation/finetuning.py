"""Joint textual inversion and LoRA, as Diff-Mix fine-tunes (arXiv:2403.19600, section 3).

One new token a class and low-rank additions to every attention of the U-Net are learned together on
the training images, all classes in one run, with the prompt `a photo of a <class_i> [metaclass]`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, StableDiffusionImg2ImgPipeline
from jaxtyping import Float, Int, UInt8
from peft import LoraConfig
from torch import Tensor, nn

from online_aug.config_finetune import FinetuneConfig
from online_aug.generation.adapters import save_adapters
from online_aug.generation.concepts import Concept
from online_aug.generation.models import training_scheduler
from online_aug.seeding import numpy_rng, torch_rng

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
MAX_KEPT_LATENTS = 20_000
TOKEN_SPREAD = 1.0
"""How far apart new tokens start, in standard deviations of the known ones."""


@dataclass(frozen=True, kw_only=True)
class Examples:
    """The training images as fine-tuning reads them."""

    load: Callable[[int], UInt8[Tensor, "3 h w"]]
    """Picture by number, already at the generator's resolution."""
    labels: Int[np.ndarray, " n"]
    hflip: float
    """Probability of a horizontal flip, [0, 1]."""


class ExtendedEmbedding(nn.Module):
    """A frozen token embedding with trainable rows behind it."""

    def __init__(self, known: nn.Embedding, new: Float[Tensor, "n d"]) -> None:
        super().__init__()
        self.known = known
        self.new = nn.Parameter(new.float())

    def forward(self, ids: Int[Tensor, "b t"]) -> Float[Tensor, "b t d"]:
        """Rows of the frozen table, or of the new one for ids past its end."""
        size = self.known.num_embeddings
        known = self.known(ids.clamp(max=size - 1))
        new = self.new[(ids - size).clamp(min=0)].to(known.dtype)
        return torch.where((ids >= size).unsqueeze(-1), new, known)


def finetune(
    pipeline: StableDiffusionImg2ImgPipeline,
    examples: Examples,
    concepts: Sequence[Concept],
    config: FinetuneConfig,
    folder: Path,
    report: Callable[[int, float], None],
) -> None:
    """Learn tokens and LoRA for a float32 pipeline on its device, and save them.

    Args:
        pipeline: The base model; is changed.
        examples: What to learn from.
        concepts: Token and prompt of each class, by label.
        config: Steps, rates, rank, seed.
        folder: Where the result goes; exists.
        report: Called after every step with its number, from 1, and its loss.
    """
    embedding = _add_tokens(pipeline, concepts, config.seed)
    lora = _add_lora(pipeline, config)
    optimizer = torch.optim.AdamW(
        [
            {"params": lora, "lr": config.lr, "weight_decay": 1e-2},
            {"params": [embedding.new], "lr": config.token_lr, "weight_decay": 0.0},
        ]
    )
    ids = _prompt_ids(pipeline, [concept.prompt for concept in concepts])
    latents = _Latents(pipeline, examples)
    scheduler = training_scheduler(pipeline.scheduler.config)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(_rate, config))
    for step in range(config.steps):
        rng = numpy_rng("finetune", config.seed, step)
        loss = _loss(pipeline, scheduler, ids, latents.draw(config.batch_size, rng), rng)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(lora, 1.0)
        optimizer.step()
        schedule.step()
        report(step + 1, loss.item())
    save_adapters(folder, pipeline, embedding.new.detach(), concepts)


def _rate(config: FinetuneConfig, step: int) -> float:
    """Factor on both learning rates."""
    if config.schedule == "constant":
        return 1.0
    return 0.5 + 0.5 * math.cos(math.pi * step / config.steps)


def _loss(
    pipeline: StableDiffusionImg2ImgPipeline,
    scheduler: DDPMScheduler,
    ids: Int[Tensor, "k t"],
    batch: tuple[Float[Tensor, "b c h w"], Int[Tensor, " b"]],
    rng: np.random.Generator,
) -> Float[Tensor, ""]:
    """Denoising error at random noise levels, on what the network was trained to predict."""
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


class _Latents:
    """Scaled source latents, encoded on first use and kept."""

    def __init__(self, pipeline: StableDiffusionImg2ImgPipeline, examples: Examples) -> None:
        self._vae = pipeline.vae
        self._examples = examples
        self._kept: dict[tuple[int, bool], Tensor] = {}

    def draw(
        self, size: int, rng: np.random.Generator
    ) -> tuple[Float[Tensor, "b c h w"], Int[Tensor, " b"]]:
        indices = rng.integers(len(self._examples.labels), size=size)
        flips = rng.random(size) < self._examples.hflip
        latents = [self._latent(int(i), bool(f)) for i, f in zip(indices, flips, strict=True)]
        labels = torch.from_numpy(self._examples.labels[indices]).to(self._vae.device)
        return torch.stack(latents).to(self._vae.device), labels

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


def _add_tokens(
    pipeline: StableDiffusionImg2ImgPipeline, concepts: Sequence[Concept], seed: int
) -> ExtendedEmbedding:
    """New tokens that start around the mean of the metaclass' words."""
    words = concepts[0].prompt.partition(concepts[0].token)[2].strip()
    known = pipeline.text_encoder.get_input_embeddings()
    ids = pipeline.tokenizer(words or "object", add_special_tokens=False).input_ids
    start = known.weight.detach()[ids].mean(0)
    spread = TOKEN_SPREAD * known.weight.detach().std()
    noise = torch.randn(len(concepts), len(start), generator=torch_rng(seed)).to(start)
    pipeline.text_encoder.requires_grad_(False)
    pipeline.tokenizer.add_tokens([concept.token for concept in concepts])
    embedding = ExtendedEmbedding(known, start + spread * noise)
    pipeline.text_encoder.set_input_embeddings(embedding.to(known.weight.device))
    return embedding


def _add_lora(
    pipeline: StableDiffusionImg2ImgPipeline, config: FinetuneConfig
) -> list[nn.Parameter]:
    pipeline.unet.requires_grad_(False)
    pipeline.vae.requires_grad_(False)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        pipeline.unet.add_adapter(
            LoraConfig(
                r=config.rank,
                lora_alpha=config.rank,
                init_lora_weights="gaussian",
                target_modules=list(ATTENTION),
            )
        )
    return [p for p in pipeline.unet.parameters() if p.requires_grad]


def _prompt_ids(
    pipeline: StableDiffusionImg2ImgPipeline, prompts: Sequence[str]
) -> Int[Tensor, "k t"]:
    tokenizer = pipeline.tokenizer
    ids: Tensor = tokenizer(
        list(prompts),
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    ).input_ids
    return ids.to(pipeline.device)
