"""Draw samples of a model from pure noise: a row for each prompt.

    python -m benchmarks.generation.sample_sheet MODEL_DIRECTORY OUT.png [ADAPTER]

With an adapter for few steps (`generation.few_step_adapter`) in four steps of `lcm` without
guidance, else in 25 of `dpmsolver++` with guidance.
"""

import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from online_aug.diffusion.few_steps import locate_few_step_adapter, read_few_step_adapter
from online_aug.diffusion.loading import Pipeline, load_few_step_adapter, load_img2img
from online_aug.generation.solvers import sampling_scheduler
from online_aug.seeding import torch_rng

PROMPTS = (
    "a photo of a digit",
    "a photo of a digit thick upright",
    "a photo of a digit thin leaning right narrow",
    "a photo of a bird",
    "a photo of a bird perched in a forest at noon",
    "a photo of a bird flying over the sea at noon",
    "a photo of a bird perched in the snow under clouds blue body black wing white belly black cap "
    "short orange beak long tail",
    "a photo of a bird flying in a desert at noon yellow body brown wing white belly red cap "
    "short black beak short tail two wing bars",
)
COLUMNS = 10


class Sampling(NamedTuple):
    """How the samples are made, as `generation.*` says it."""

    scheduler: str
    steps: int
    guidance_scale: float


PLAIN, FEW = Sampling("dpmsolver++", 25, 2.5), Sampling("lcm", 4, 1.0)


def main() -> None:
    """Sample all prompts and save the sheet."""
    folder, out, *adapter = sys.argv[1:]
    pipeline = load_img2img(Path(folder), "float32")
    if path := locate_few_step_adapter(adapter[0] if adapter else None):
        load_few_step_adapter(pipeline, read_few_step_adapter(path, Path(folder)), path)
    how = FEW if adapter else PLAIN
    pipeline.scheduler = sampling_scheduler(how.scheduler, pipeline.scheduler.config)
    rows = [sample(pipeline, how, prompt) for prompt in PROMPTS]
    Image.fromarray(np.concatenate(rows, axis=0)).save(out)


@torch.no_grad()
def sample(pipeline: Pipeline, how: Sampling, prompt: str) -> np.ndarray:
    """Return the samples of a prompt from `COLUMNS` different noises, side by side."""
    side = pipeline.unet.config.sample_size
    words, empty = pipeline.encode_prompt(prompt, "cpu", 1, True, "")
    words, empty = (part.expand(COLUMNS, -1, -1) for part in (words, empty))
    shape = (4, side, side)
    latents = torch.stack([torch.randn(shape, generator=torch_rng(n)) for n in range(COLUMNS)])
    noise = {"generator": torch_rng(COLUMNS)} if how.scheduler == "lcm" else {}
    pipeline.scheduler.set_timesteps(how.steps)
    for step in pipeline.scheduler.timesteps:
        guided = pipeline.unet(latents, step, words).sample
        free = guided if how.guidance_scale == 1 else pipeline.unet(latents, step, empty).sample
        output = free + how.guidance_scale * (guided - free)
        latents = pipeline.scheduler.step(output, step, latents, **noise).prev_sample
    images = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
    pixels = ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return np.concatenate(list(pixels.permute(0, 2, 3, 1).numpy()), axis=1)


if __name__ == "__main__":
    main()
