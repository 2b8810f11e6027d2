"""Contexts, sources and requests for tests, small and all of one recipe."""

import hashlib

import numpy as np
from hypothesis import strategies as st

from online_aug.methods import (
    METHODS,
    DiffuseMix,
    DiffuseMixSettings,
    MethodContext,
    Part,
    SgdMix,
    SgdMixSettings,
    Source,
    plan_requests,
)
from online_aug.request import GenerationRequest
from online_aug.saliency import SaliencyTable

CLASSES = 4


def make_context(**changes):
    prompts = tuple(f"a photo of a <class_{number}> digit" for number in range(CLASSES))
    settings = {
        "prompts": prompts,
        "strengths": (0.5, 0.7, 0.9),
        "gamma": 0.8,
        "guidance_scale": 2.5,
        "num_inference_steps": 10,
        "scheduler": "ddim",
        "resolution": 64,
        "seed": 0,
        "generator_fingerprint": "f0",
        "saliency": make_table(12),
    }
    return MethodContext(**settings | changes)


INSTRUCTIONS = tuple(
    f"A transformed version of image into {word}" for word in ("snowy", "mosaic", "sunset")
)


def diffusemix_settings(**changes):
    """What DiffuseMix needs beside the rest, with two flat fractals of different sizes."""
    settings = {
        "instructions": INSTRUCTIONS,
        "takes_all": False,
        "image_guidance_scale": 1.5,
        "masks": ("left", "right", "top", "bottom"),
        "seam": 0.0,
        "fractal_weight": 0.2,
        "fractals": [np.full((4, 4, 3), 90, np.uint8), np.full((6, 6, 3), 200, np.uint8)],
    }
    return DiffuseMixSettings(**settings | changes)


def sgd_mix_settings(**changes):
    """What SGD-Mix needs beside the rest and the maps."""
    settings = {
        "candidates": (3, 5),
        "max_union_share": 0.9,
        "min_source_share": 0.05,
        "max_draws": 5,
    }
    return SgdMixSettings(**settings | changes)


def context_for(method, **changes):
    """A context with what this method asks for."""
    settings = {DiffuseMix: diffusemix_settings, SgdMix: sgd_mix_settings}.get(type(method))
    return make_context(settings=settings and settings(), **changes)


def make_plan(sources, variants, name="diff_mix", **changes):
    """What one method asks for."""
    method = METHODS[name]
    part = Part(method=method, context=context_for(method, **changes))
    return plan_requests([part], sources, variants)


def make_sources(count):
    """Distinct images; their classes go round."""
    return [Source(digest=digest_of(number), label=number % CLASSES) for number in range(count)]


def make_table(count, side=8):
    """Maps of `make_sources(count)`: a soft spot each, somewhere near the middle."""
    rng = np.random.default_rng(count)
    y, x = np.mgrid[:side, :side] / (side - 1)
    maps = {}
    for number in range(count):
        (cy, cx), width = rng.uniform(0.3, 0.7, 2), rng.uniform(0.01, 0.06)
        spot = np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * width))
        maps[digest_of(number)] = (spot - spot.min()) / (spot.max() - spot.min())
    return SaliencyTable.from_maps("v1", maps)


def digest_of(number):
    return hashlib.blake2b(str(number).encode(), digest_size=16).hexdigest()


def make_request(**changes):
    fields = {
        "method": "diff_mix",
        "method_version": 1,
        "source_digest": digest_of(0),
        "source_label": 0,
        "target_label": 1,
        "prompt": "a photo of a <class_1> digit",
        "strength": 0.5,
        "guidance_scale": 2.5,
        "num_inference_steps": 10,
        "scheduler": "ddim",
        "resolution": 64,
        "variant": 0,
        "noise_seed": 7,
        "generator_fingerprint": "f0",
    }
    return GenerationRequest(**fields | changes)


_numbers = st.integers(0, 2**63 - 1)
_positive = st.floats(0.01, 100)
_texts = st.text(st.characters(codec="utf-8"), max_size=20)
VALUES = {
    "method": st.sampled_from(sorted(METHODS)),
    "method_version": _numbers,
    "source_digest": _texts,
    "source_label": _numbers,
    "target_label": _numbers,
    "target_digest": st.none() | _texts,
    "prompt": _texts,
    "strength": _positive,
    "starts_from": st.sampled_from(["image", "noise"]),
    "keeps_foreground": st.booleans(),
    "guidance_scale": _positive,
    "image_guidance_scale": st.none() | _positive,
    "num_inference_steps": _numbers,
    "scheduler": _texts,
    "resolution": _numbers,
    "variant": _numbers,
    "noise_seed": _numbers,
    "saliency_version": st.none() | _texts,
    "gate_version": st.none() | _texts,
    "generator_fingerprint": _texts,
}
"""What each field of a request may hold."""

requests = st.fixed_dictionaries(VALUES).map(lambda fields: GenerationRequest(**fields))
