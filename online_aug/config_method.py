"""The part of the configuration that says what is generated, method by method."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from online_aug.config_types import (
    Count,
    Exponent,
    Fraction,
    Mask,
    Pixels,
    Positive,
    Section,
    Seed,
    Strengths,
    Text,
)


class MethodConfig(Section):
    """What is generated."""

    name: Literal["diff_mix", "diff_aug", "diffusemix"] = "diff_mix"
    """`diff_mix`: towards any class; `diff_aug`: own class; `diffusemix`: edited by instruction."""
    strength: Strengths = (0.5, 0.7, 0.9)
    """Fraction of the diffusion trajectory replayed, (0, 1]; one value or a list to draw from."""
    gamma: Positive = 0.8
    """Exponent of the soft label `(1 - s^gamma) y_source + s^gamma y_target`, above 0."""
    prompts: Annotated[tuple[Text, ...], Field(min_length=1)] = (
        "autumn",
        "snowy",
        "watercolor art",
        "sunset",
        "rainbow",
        "aurora",
        "mosaic",
        "ukiyo-e",
        "a sketch with crayon",
    )
    """DiffuseMix: the instructions; the default is the paper's nine."""
    template: Annotated[str, Field(pattern=r"\{prompt\}")] = (
        "A transformed version of image into {prompt}"
    )
    """DiffuseMix: what the model reads; `{prompt}` alone is the released code's."""
    prompt_choice: Literal["random", "all"] = "random"
    """DiffuseMix: a random prompt for each image (paper), or each in turn (released code)."""
    masks: Annotated[tuple[Mask, ...], Field(min_length=1)] = ("left", "right", "top", "bottom")
    """DiffuseMix: where the source stays, one drawn each time; `centre` and `rim` are GenMix's."""
    seam: Fraction = 0.0
    """DiffuseMix: width of the blend at the border, fraction of the image; 0 is hard (paper)."""
    fractal_weight: Annotated[float, Field(ge=0, lt=1), Exponent] = 0.2
    """DiffuseMix: share of the fractal in the final image, the paper's lambda."""


class FractalConfig(Section):
    """Fractal pictures that DiffuseMix blends over its images."""

    folder: Path | None = None
    """Folder of your own pictures; null draws ours: iterated function systems and Julia sets."""
    path: Path = Path("runs/fractals")
    """Where the pictures are kept, drawn or read once, as one file for each set of settings."""
    count: Count = 300
    """Pictures drawn; of a folder that holds more, a random part of this size."""
    side_px: Pixels | None = None
    """Side of the kept squares, px; null takes `generation.resolution`, at most 256."""
    seed: Seed = 0
    """Seed of our own pictures and of the part of a folder."""
