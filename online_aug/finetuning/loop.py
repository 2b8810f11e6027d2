"""The steps of a fine-tuning, and the checkpoints from which an interrupted one goes on.

Order, noise and images of a step follow from the seed and its number, so a fine-tuning that stops
and goes on ends with the same bits as one that does not.
"""

import hashlib
import io
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionImg2ImgPipeline
from jaxtyping import Int
from torch import Tensor

from online_aug.config.sections import FinetuneConfig, GenerationConfig
from online_aug.diffusion.adaptation import Stage, stages_of, steps_from
from online_aug.diffusion.adapters import Concept
from online_aug.diffusion.loading import training_scheduler
from online_aug.distributed.world import World
from online_aug.errors import UserError
from online_aug.files import write_atomically
from online_aug.finetuning.learner import Learner
from online_aug.finetuning.objective import (
    Examples,
    Latents,
    Sampler,
    denoising_loss,
    draw_corruption,
)
from online_aug.seeding import numpy_rng

CHECKPOINTS = "checkpoints"
"""Folder of the checkpoints, in the folder of an unfinished result."""
VALIDATION = "validation"
"""Folder of the validation sheets, in the folder of the result."""
KEPT = 2
"""The number of checkpoints that are kept."""
_FORMAT = 1
_DIGEST_BYTES = 16
_SUFFIX = ".checkpoint"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class FinetuneTask:
    """The concepts to learn, and the settings for learning them."""

    examples: Examples
    concepts: Sequence[Concept]
    """Prompt of each class, and its token if tokens are learned, by label."""
    config: FinetuneConfig
    generation: GenerationConfig
    """Solver, steps, guidance and resolution of the validation images."""


@dataclass(frozen=True)
class Checkpoint:
    """The state of a fine-tuning between two steps."""

    step: int
    """Optimizer steps done; 0 is the beginning, without a state."""
    state: Mapping[str, Any]
    """State of the learner."""


BEGINNING = Checkpoint(0, {})


def finetune(
    pipeline: StableDiffusionImg2ImgPipeline,
    task: FinetuneTask,
    folder: Path,
    report: Callable[[int, float], None],
    checkpoint: Checkpoint,
    world: World,
) -> None:
    """Learn tokens, LoRA or both, and save them.

    Args:
        pipeline: The base model in float32, on the device of this rank. It is changed: U-Net and
            text encoder are converted to `finetune.dtype` and get what is learned.
        task: Images, prompts and settings.
        folder: Existing folder into which the first rank writes result and checkpoints.
        report: Called after every step with its number, from 1, and its loss.
        checkpoint: State to go on from.
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
    if checkpoint.step:
        _restore(learner, stages, checkpoint)
    for step, stage, step_of_stage in steps_from(stages, checkpoint.step):
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
            _save_if_due(learner, task, step + 1, folder)
        report(step + 1, loss)
    if world.is_first:
        learner.save(folder)


def _prompt_ids(
    pipeline: StableDiffusionImg2ImgPipeline, prompts: Sequence[str]
) -> Int[Tensor, "k t"]:
    tokenizer = pipeline.tokenizer
    ids: Tensor = tokenizer(
        pipeline.maybe_convert_prompt(list(prompts), tokenizer),  # tokens of several vectors
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    ).input_ids
    return ids.to(pipeline.device)


def _restore(learner: Learner, stages: Sequence[Stage], checkpoint: Checkpoint) -> None:
    _, stage, _ = next(steps_from(stages, checkpoint.step - 1))
    learner.begin(stage)
    learner.load_state_dict(checkpoint.state)


def _rate(config: FinetuneConfig, step: int, steps: int) -> float:
    """Return the factor on the learning rates at a step of a stage."""
    if config.schedule == "constant":
        return 1.0
    return 0.5 + 0.5 * math.cos(math.pi * step / steps)


def _save_if_due(learner: Learner, task: FinetuneTask, done: int, folder: Path) -> None:
    config = task.config
    if config.validation_steps and done % config.validation_steps == 0:
        learner.draw(task.generation, folder / VALIDATION / f"step_{done:08d}.png")
    if done % config.checkpoint_steps == 0:
        save_checkpoint(folder / CHECKPOINTS, Checkpoint(done, learner.state_dict()))


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint with its digest, whole or not at all, and delete old ones.

    Args:
        folder: Folder of the checkpoints of one fine-tuning; made if it is missing.
        checkpoint: Its state holds tensors, plain values and containers of them.

    Raises:
        UserError: If it cannot be written, such as to a full disk; older ones are then still there.
    """
    content = io.BytesIO()
    state = {"format": _FORMAT, "step": checkpoint.step, "state": dict(checkpoint.state)}
    torch.save(state, content)
    path = folder / f"step_{checkpoint.step:08d}{_SUFFIX}"
    try:
        folder.mkdir(exist_ok=True)
        write_atomically(path, _digest(content.getbuffer()) + content.getbuffer())
    except OSError as error:
        raise UserError(
            f"finetune.path must have room for {path}, got {error.strerror}: the same command goes "
            "on from the checkpoint before once it has"
        ) from error
    kept = _newest_first(folder)[:KEPT]
    for other in folder.iterdir():
        if other not in kept:  # also what a killed process left half written
            other.unlink()


def newest_checkpoint(folder: Path) -> Checkpoint:
    """Read the newest checkpoint, or return the beginning if none can be read.

    A checkpoint that is damaged or of another version is passed over with a warning.
    """
    for path in _newest_first(folder):
        try:
            return _read_checkpoint(path)
        except (OSError, ValueError) as error:
            _log.warning("fine-tuning does not go on from %s: %s", path, error)
    return BEGINNING


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"step_*{_SUFFIX}"), reverse=True)


def _read_checkpoint(path: Path) -> Checkpoint:
    content = path.read_bytes()
    if _digest(content[_DIGEST_BYTES:]) != content[:_DIGEST_BYTES]:
        raise ValueError("it is damaged")
    found = torch.load(io.BytesIO(content[_DIGEST_BYTES:]), map_location="cpu", weights_only=True)
    if found["format"] != _FORMAT:
        raise ValueError(f"it is of another version ({found['format']}, {_FORMAT} here)")
    return Checkpoint(found["step"], found["state"])


def _digest(content: bytes | memoryview) -> bytes:
    return hashlib.blake2b(content, digest_size=_DIGEST_BYTES).digest()
