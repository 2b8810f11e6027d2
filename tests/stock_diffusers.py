"""Diffusers' own pipelines, with which our images are compared."""

from functools import cache

import torch
from diffusers import AutoencoderTiny

from online_aug.generation.solvers import SOLVERS


@cache
def stock_pipeline(kind, model, vae=None):
    """Load the pipeline of a directory; return it with the settings of its scheduler."""
    pipeline = kind.from_pretrained(model, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    if vae is not None:
        pipeline.vae = AutoencoderTiny.from_pretrained(vae)
    return pipeline, pipeline.scheduler.config


def stock(kind, model, request, vae=None, **own):
    """Return the image that diffusers makes with the settings of a request."""
    pipeline, known = stock_pipeline(kind, model, vae)
    plms = {"skip_prk_steps": True} if request.scheduler == "pndm" else {}
    pipeline.scheduler = SOLVERS[request.scheduler].schedule.from_config(known, **plms)
    return pipeline(
        prompt=request.prompt,
        num_inference_steps=request.num_inference_steps,
        guidance_scale=request.guidance_scale,
        generator=torch.Generator().manual_seed(request.noise_seed),
        output_type="pt",
        **own,
    ).images[0]


def assert_same_pixels(made, expected):
    """Compare two images to 1e-3 before rounding, and to one level of 255 after it."""
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-3)
    levels = [(image * 255).round().int() for image in (made, expected)]
    assert (levels[0] - levels[1]).abs().max() <= 1
