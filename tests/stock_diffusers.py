"""Diffusers' own pipelines, which our images are held against."""

from functools import cache

import torch
from diffusers import AutoencoderTiny

from online_aug.generation.solvers import SOLVERS


@cache
def stock_pipeline(kind, model, vae=None):
    """The pipeline of a directory, and what that says of its noise schedule."""
    pipeline = kind.from_pretrained(model, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    if vae is not None:
        pipeline.vae = AutoencoderTiny.from_pretrained(vae)
    return pipeline, pipeline.scheduler.config


def stock(kind, model, request, vae=None, **own):
    """What a user of diffusers gets for the same settings."""
    pipeline, known = stock_pipeline(kind, model, vae)
    pipeline.scheduler = SOLVERS[request.scheduler].schedule.from_config(known)
    return pipeline(
        prompt=request.prompt,
        num_inference_steps=request.num_inference_steps,
        guidance_scale=request.guidance_scale,
        generator=torch.Generator().manual_seed(request.noise_seed),
        output_type="pt",
        **own,
    ).images[0]


def assert_same_pixels(made, expected):
    """To 1e-3 before rounding, and to one level of 255 after it."""
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-3)
    levels = [(image * 255).round().int() for image in (made, expected)]
    assert (levels[0] - levels[1]).abs().max() <= 1
