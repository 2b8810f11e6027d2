"""What the embedded models are trained for, and what a batch of each looks like."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from online_aug.generation.tiny import LATENT_CHANNELS
from online_aug.pretraining.corpus import Corpus, build_corpus, build_edits

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
