"""Fine-tuning from its first step to its files.

The training images as fine-tuning draws them: latents, in batches, each encoded once.

How wrong a denoiser is about the training images.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, StableDiffusionImg2ImgPipeline
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from online_aug.config.generation import FinetuneConfig, GenerationConfig
from online_aug.diffusion.adaptation import Stage, stages_of, steps_from
from online_aug.diffusion.adapters import Concept
from online_aug.diffusion.loading import training_scheduler
from online_aug.distributed.world import World
from online_aug.finetuning.learner import Learner
from online_aug.finetuning.run import Saved, save_checkpoint
from online_aug.seeding import numpy_rng, torch_rng

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


CHECKPOINTS = "checkpoints"
"""Folder beside the result as long as it is not whole."""
VALIDATION = "validation"
"""Folder beside the result with what the model drew on the way."""


@dataclass(frozen=True, kw_only=True)
class FinetuneTask:
    """What is to be learned, and how."""

    examples: Examples
    concepts: Sequence[Concept]
    """Prompt of each class, and its token where tokens are learned, by label."""
    config: FinetuneConfig
    generation: GenerationConfig
    """How the model is to draw when it shows what it has learned."""


def finetune(
    pipeline: StableDiffusionImg2ImgPipeline,
    task: FinetuneTask,
    folder: Path,
    report: Callable[[int, float], None],
    saved: Saved,
    world: World,
) -> None:
    """Learn tokens, LoRA or both for a float32 pipeline on its device, and save them.

    The U-Net and the text encoder are brought into `finetune.dtype`.

    Args:
        pipeline: The base model, on the device of this rank; is changed.
        task: Images, prompts, steps, rates, rank, seed.
        folder: Where the first rank puts result and checkpoints; exists.
        report: Called after every step with its number, from 1, and its loss.
        saved: State to go on from.
        world: The ranks, each of which computes its part of every step.
    """
    config = task.config
    learner = Learner(pipeline, task.concepts, config, world)
    ids = _prompt_ids(pipeline, [concept.prompt for concept in task.concepts])
    sampler = Sampler(task.examples, config.class_balance)
    latents = Latents(pipeline.vae, task.examples)
    scheduler = training_scheduler(pipeline.scheduler.config)
    loss_on = partial(denoising_loss, pipeline, scheduler, ids, min_snr_gamma=config.min_snr_gamma)
    stages = stages_of(config, len(task.concepts))
    if saved.step:
        _go_on(learner, stages, saved)
    for step, stage, step_of_stage in steps_from(stages, saved.step):
        if step_of_stage == 0:
            learner.begin(stage)
        rng = numpy_rng("finetune", config.seed, step)
        drawn = sampler.draw(config.batch_size, stage.label, rng).part(world)
        clean, labels = latents.batch(drawn)
        shape = (config.batch_size, *clean.shape[1:])
        noisy = draw_corruption(shape, scheduler, rng).part(world)
        rate, share = _rate(config, step_of_stage, stage.steps), len(labels) / config.batch_size
        loss = learner.step(partial(loss_on, (clean, labels), noisy), rate, share)
        if world.is_first:
            _keep(learner, task, step + 1, folder)
        report(step + 1, loss)
    if world.is_first:
        learner.save(folder)


def _keep(learner: Learner, task: FinetuneTask, done: int, folder: Path) -> None:
    """Draw and save after so many steps what is due."""
    config = task.config
    if config.validation_steps and done % config.validation_steps == 0:
        path = folder / VALIDATION / f"step_{done:08d}.png"
        learner.draw(task.generation, path)
    if done % config.checkpoint_steps == 0:
        save_checkpoint(folder / CHECKPOINTS, Saved(done, learner.state_dict()))


def _go_on(learner: Learner, stages: Sequence[Stage], saved: Saved) -> None:
    _, stage, _ = next(steps_from(stages, saved.step - 1))
    learner.begin(stage)
    learner.load_state_dict(saved.state)


def _rate(config: FinetuneConfig, step: int, steps: int) -> float:
    """Factor on the learning rates at this step of a stage."""
    if config.schedule == "constant":
        return 1.0
    return 0.5 + 0.5 * math.cos(math.pi * step / steps)


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
