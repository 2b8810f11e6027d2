"""Sheets of images that a model draws while it learns: a few classes, always the same noise."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
from jaxtyping import UInt8

from cache.contact_sheet import Cell, draw_sheet
from online_aug.config.sections import GenerationConfig
from online_aug.diffusion.adapters import Concept
from online_aug.files import write_atomically
from online_aug.generation.solvers import sampling_scheduler
from online_aug.seeding import torch_rng
from online_aug.settings import decided

CLASSES, IMAGES = 4, 2
"""The number of classes, spread evenly over all, and the number of images of each."""


def draw_validation(
    pipeline: StableDiffusionImg2ImgPipeline,
    concepts: Sequence[Concept],
    config: GenerationConfig,
    path: Path,
) -> None:
    """Draw images from pure noise, as `generation.*` makes them, and write a sheet of them.

    The pipeline stays as it is, and no global random state is read or changed.

    Args:
        pipeline: The model in training.
        concepts: Prompt of each class.
        config: Solver, steps, guidance, resolution.
        path: The PNG to write.
    """
    places = np.linspace(0, len(concepts) - 1, min(CLASSES, len(concepts))).round().astype(int)
    wanted = [(concepts[place], seed) for place in places for seed in range(IMAGES)]
    drawing = _text_to_image(pipeline, config.scheduler)
    images = [_draw(drawing, concept.prompt, config, seed) for concept, seed in wanted]
    captions = [[concept.name, concept.prompt, f"noise {seed}"] for concept, seed in wanted]
    write_validation_sheet(path, images, captions)


def _text_to_image(
    pipeline: StableDiffusionImg2ImgPipeline, scheduler: str
) -> StableDiffusionPipeline:
    own = {"scheduler": sampling_scheduler(scheduler, pipeline.scheduler.config)}
    drawing = StableDiffusionPipeline(**pipeline.components | own, requires_safety_checker=False)
    drawing.set_progress_bar_config(disable=True)
    return drawing


@torch.no_grad()
def _draw(
    drawing: StableDiffusionPipeline, prompt: str, config: GenerationConfig, seed: int
) -> UInt8[np.ndarray, "r r 3"]:
    latents = drawing(
        prompt,
        height=decided(config.resolution),
        width=decided(config.resolution),
        num_inference_steps=decided(config.num_inference_steps),
        guidance_scale=config.guidance_scale,
        generator=torch_rng(seed),
        output_type="latent",
    ).images
    vae = drawing.vae
    with torch.autocast(vae.device.type, enabled=False):  # the decoder overflows in float16
        image = vae.decode(latents.to(vae.dtype) / vae.config.scaling_factor).sample[0]
    pixels = (127.5 * (image.float().nan_to_num(-1) + 1)).round().clamp(0, 255)
    drawn: UInt8[np.ndarray, "r r 3"] = pixels.to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    return drawn


def write_validation_sheet(
    path: Path, images: Sequence[UInt8[np.ndarray, "h w 3"]], captions: Sequence[Sequence[str]]
) -> None:
    """Write a PNG of images with the lines of their captions beside them; make its folder.

    Raises:
        OSError: If it cannot be written.
    """
    cells = [Cell(image, None, lines) for image, lines in zip(images, captions, strict=True)]
    path.parent.mkdir(exist_ok=True)
    title = path.stem.replace("_", " ")
    write_atomically(path, draw_sheet(cells, title, has_sources=False))
