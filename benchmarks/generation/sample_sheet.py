"""Draw samples of a model from pure noise: a row for each prompt.

python -m benchmarks.generation.sample_sheet MODEL_DIRECTORY OUT.png
"""

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from online_aug.diffusion.loading import load_img2img
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
STEPS, GUIDANCE_SCALE = 25, 2.5


def main() -> None:
    """Sample all prompts and save the sheet."""
    folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    rows = [sample(folder, prompt) for prompt in PROMPTS]
    Image.fromarray(np.concatenate(rows, axis=0)).save(out)


@torch.no_grad()
def sample(folder: Path, prompt: str) -> np.ndarray:
    """Return the samples of a prompt from `COLUMNS` different noises, side by side."""
    pipeline = load_img2img(folder, "float32")
    pipeline.scheduler = sampling_scheduler("dpmsolver++", pipeline.scheduler.config)
    side = pipeline.unet.config.sample_size
    words, empty = pipeline.encode_prompt(prompt, "cpu", 1, True, "")
    words, empty = (part.expand(COLUMNS, -1, -1) for part in (words, empty))
    shape = (4, side, side)
    latents = torch.stack([torch.randn(shape, generator=torch_rng(n)) for n in range(COLUMNS)])
    pipeline.scheduler.set_timesteps(STEPS)
    for step in pipeline.scheduler.timesteps:
        guided = pipeline.unet(latents, step, words).sample
        free = pipeline.unet(latents, step, empty).sample
        output = free + GUIDANCE_SCALE * (guided - free)
        latents = pipeline.scheduler.step(output, step, latents).prev_sample
    images = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
    pixels = ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return np.concatenate(list(pixels.permute(0, 2, 3, 1).numpy()), axis=1)


if __name__ == "__main__":
    main()
