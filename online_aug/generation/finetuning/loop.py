"""Fine-tuning from its first step to its files."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from diffusers import StableDiffusionImg2ImgPipeline
from jaxtyping import Int
from torch import Tensor

from online_aug.config_finetune import FinetuneConfig
from online_aug.config_generation import GenerationConfig
from online_aug.generation.concepts import Concept
from online_aug.generation.finetuning.checkpoints import Saved, save_checkpoint
from online_aug.generation.finetuning.latents import Examples, Latents, Sampler
from online_aug.generation.finetuning.learner import Learner
from online_aug.generation.finetuning.loss import denoising_loss, draw_corruption
from online_aug.generation.finetuning.stages import Stage, stages_of, steps_from
from online_aug.generation.models import training_scheduler
from online_aug.seeding import numpy_rng
from online_aug.training.distributed import World

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
