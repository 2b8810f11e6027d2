"""Methods, contexts, sources and requests for tests, small and all of one recipe."""

import hashlib
from dataclasses import fields

import numpy as np
from hypothesis import strategies as st

from online_aug.methods import METHODS, Method, MethodContext, Part, Source
from online_aug.methods import make_method as method_of
from online_aug.planning import Images, Plan
from online_aug.request import GenerationRequest
from online_aug.saliency import SaliencyTable

CLASSES = 4
PROMPTS = ("snowy", "mosaic", "sunset")
INSTRUCTIONS = tuple(f"A transformed version of image into {prompt}" for prompt in PROMPTS)
SMALL = {
    "diffusemix": {"prompts": PROMPTS},
    "sgd_mix": {"candidates": (3, 5), "max_union_share": 0.9},
    "paste": {"candidates": (3, 5), "max_union_share": 0.9},
}
"""Settings of methods that fit a training set of a dozen images."""


def make_method(name="diff_mix", **settings) -> Method:
    """A method with small settings and these."""
    return method_of(METHODS[name].Settings(name=name, **SMALL.get(name, {}) | settings))


def make_context(**changes):
    """A context for any method, with maps of a dozen images and two flat fractals."""
    prompts = tuple(f"a photo of a <class_{number}> digit" for number in range(CLASSES))
    values = {
        "prompts": prompts,
        "class_sizes": (3,) * len(changes.get("prompts", prompts)),
        "guidance_scale": 2.5,
        "image_guidance_scale": 1.5,
        "num_inference_steps": 10,
        "scheduler": "ddim",
        "resolution": 64,
        "seed": 0,
        "generator_fingerprint": "f0",
        "resources": [np.full((4, 4, 3), 90, np.uint8), np.full((6, 6, 3), 200, np.uint8)],
        "saliency": make_table(12),
    }
    return MethodContext(**values | changes)


def make_part(name="diff_mix", **changes):
    """A method and its context; changes are of the settings or of the context."""
    shared = {field.name for field in fields(MethodContext)}
    settings = {key: value for key, value in changes.items() if key not in shared}
    context = {key: value for key, value in changes.items() if key in shared}
    return Part(method=make_method(name, **settings), context=make_context(**context))


def make_plan(sources, variants, name="diff_mix", **changes):
    """Every request of one method."""
    return list(Plan([make_part(name, **changes)], Images.of(sources), variants))


def make_sources(count):
    """Distinct images, whose classes take turns."""
    return [Source(digest=digest_of(number), label=number % CLASSES) for number in range(count)]


def make_table(count, side=8):
    """Maps of `make_sources(count)`, each with a soft spot near the middle."""
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
    "code_digest": st.none() | _texts,
    "starts_from": st.sampled_from(["image", "noise"]),
    "keeps": st.sampled_from(["nothing", "foreground", "background"]),
    "mask_growth": _positive,
    "guidance_scale": _positive,
    "image_guidance_scale": st.none() | _positive,
    "num_inference_steps": _numbers,
    "scheduler": _texts,
    "resolution": _numbers,
    "source_filter": st.sampled_from(["bilinear", "bicubic"]),
    "variant": _numbers,
    "noise_seed": _numbers,
    "saliency_version": st.none() | _texts,
    "gate_version": st.none() | _texts,
    "generator_fingerprint": _texts,
}
"""The values that each field of a request may have."""

requests = st.fixed_dictionaries(VALUES).map(lambda fields: GenerationRequest(**fields))
