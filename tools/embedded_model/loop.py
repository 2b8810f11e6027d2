"""The training loop of every part: steps that save, resume and say where they are.

What the embedded models are trained for, and what a batch of each looks like.
"""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from tools.embedded_model.architecture import LATENT_CHANNELS
from tools.embedded_model.corpus import Corpus, build_corpus, build_edits

SAVE_STEPS = 250


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What decides the result, beside the code."""

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
    """A model directory whose autoencoder is taken, and trained on for `vae_steps`."""
    start: Path | None = None
    """A model directory of the same task whose denoiser and words are trained on."""


class Step:
    """One optimizer step: `finish(loss)` does the backward pass and the update."""

    def __init__(self, number: int, optimizer: torch.optim.Optimizer) -> None:
        self.number = number
        self.loss = math.nan
        self._optimizer = optimizer

    def finish(self, loss: Tensor) -> None:
        """Backward pass, clipped gradients, update."""
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
    """Numbered steps with learning rate, checkpoints, losses on disk and a progress bar."""
    if not isinstance(parts, dict):
        parts = {"model": parts, "optimizer": optimizer}
    checkpoint = settings.work / f"{name}.pt"
    first = _resume(checkpoint, parts)
    losses: list[float] = []
    started = time.monotonic()
    for number in (bar := tqdm(range(first, total), desc=name, initial=first, total=total)):
        for group in optimizer.param_groups:
            group["lr"] = lr * _warm_flat_falling(number / total)
        step = Step(number, optimizer)
        yield step
        losses.append(step.loss)
        if (number + 1) % SAVE_STEPS == 0 or number + 1 == total:
            _log(settings.work, name, number + 1, losses, time.monotonic() - started)
            bar.set_postfix(loss=f"{sum(losses) / len(losses):.4f}")
            losses, started = [], time.monotonic()
            _save(checkpoint, parts, number + 1)


def _warm_flat_falling(share: float) -> float:
    """Rate over its peak: flat for most of the way, so that a longer training goes on from it."""
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


CAPTION_DIGITS, EDIT_DIGITS = 0.25, 0.4
"""Share of digits in a batch of pictures and of edits."""
WITHOUT_CAPTION = 0.1
"""Share of captions replaced by the empty prompt, for classifier-free guidance."""
WITHOUT_PART = 0.05
"""InstructPix2Pix (arXiv:2211.09800, 3.2.1): share without caption, without image, without both."""


@dataclass(frozen=True)
class Lesson:
    """One batch: what is to come out, and what the denoiser is told about it."""

    clean: Float[Tensor, "b 4 h w"]
    condition: Float[Tensor, "b c h w"]
    """Latents beside the noisy ones; no channel where there is no source image."""
    captions: list[str]
    coverage: Float[Tensor, "b 1 h w"]
    """Share of each latent that lies on the bird."""


@dataclass(frozen=True)
class Task:
    """Pictures of a task (from numbers of digits and birds, and a seed) and batches of them."""

    build_corpus: Callable[[int, int, int], Corpus]
    draw: Callable[[Corpus, Tensor, int, np.random.Generator], Lesson]
    condition_channels: int


def draw_caption_lesson(
    corpus: Corpus, latents: Float[Tensor, "n 4 h w"], size: int, rng: np.random.Generator
) -> Lesson:
    """Pictures and their captions."""
    indices, captions = corpus.draw(size, CAPTION_DIGITS, rng)
    captions = ["" if rng.random() < WITHOUT_CAPTION else caption for caption in captions]
    clean = latents[indices]
    return Lesson(clean, clean[:, :0], captions, corpus.coverage[indices])


def draw_edit_lesson(
    corpus: Corpus, latents: Float[Tensor, "n 4 h w"], size: int, rng: np.random.Generator
) -> Lesson:
    """Edited pictures, what they were before, and the instructions."""
    indices, captions = corpus.draw(size, EDIT_DIGITS, rng, only_edits=True)
    chance = rng.random(size)
    lacks_caption = chance < 2 * WITHOUT_PART
    lacks_image = (chance >= WITHOUT_PART) & (chance < 3 * WITHOUT_PART)
    before = latents[corpus.sources[indices]]
    before[torch.from_numpy(lacks_image)] = 0
    captions = [
        "" if is_lacking else caption
        for is_lacking, caption in zip(lacks_caption, captions, strict=True)
    ]
    return Lesson(latents[indices], before, captions, corpus.coverage[indices])


TASKS: Mapping[str, Task] = {
    "text_to_image": Task(build_corpus, draw_caption_lesson, 0),
    "instruct": Task(build_edits, draw_edit_lesson, LATENT_CHANNELS),
}
