"""The part of the configuration that says what is generated, method by method.

Defaults that come with the name of a method, where its paper sets more than the method itself.

They stand between the defaults of all methods and what the file says.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from online_aug.settings import (
    Count,
    Exponent,
    Fraction,
    Mask,
    Pixels,
    Positive,
    Section,
    Strength,
    Strengths,
    Text,
)


class MethodConfig(Section):
    """What is generated; or a list of such, which share the images of a run."""

    name: Literal[
        "diff_mix",
        "diff_aug",
        "diff_gen",
        "real_guidance",
        "real_mix",
        "da_fusion",
        "diffusemix",
        "sgd_mix",
    ] = "diff_mix"
    """`diff_mix`: towards any class; `diff_aug`: own class; `diff_gen`: own class, from noise;
    `real_guidance`, `real_mix`: own or any class by a model that was not fine-tuned; `da_fusion`:
    own class, with defaults of DA-Fusion (docs/METHODS.md); `diffusemix`: edited by instruction;
    `sgd_mix`: on the background of another image."""
    weight: Positive = 1.0
    """Where `method` lists several: this one's part of the images, in proportion to all weights."""
    strength: Strengths = (0.5, 0.7, 0.9)
    """Fraction of the diffusion trajectory replayed, (0, 1]; one value or a list to draw from.
    `diffusemix` and `diff_gen` replay all of it."""
    target_balance: Fraction = 0.0
    """Diff-Mix, Real-Mix: a class of n images is drawn as target in proportion to 1 / (n + 1)^x: 0
    draws all classes alike, 1 is Diff-Mix's for long tails."""
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
    candidates: tuple[Count, Count] = (30, 50)
    """SGD-Mix: fewest and most images among which a background is looked for (the paper's N)."""
    max_union_share: Strength = 0.7
    """SGD-Mix: share of the image that both foregrounds may cover, (0, 1]; 1 allows all of it."""
    min_source_share: Fraction = 0.05
    """SGD-Mix: share of the image that the source's foreground must cover."""
    keeps_foreground: bool = False
    """SGD-Mix: put the source's foreground back after every step of the refinement, so that only
    the rest is drawn anew; the paper's refinement draws all of it."""
    max_draws: Count = 5
    """SGD-Mix: how often candidates are drawn until both foregrounds leave enough background."""

    @model_validator(mode="after")
    def _fewest_come_first(self) -> "MethodConfig":
        if self.candidates[0] > self.candidates[1]:
            raise ValueError(
                f"method.candidates must be fewest then most, got {list(self.candidates)}"
            )
        return self


REPLAY_ALL = ("diffusemix", "diff_gen")

"""Methods for which the strengths are without effect."""

ONE, SEVERAL = "<one>", "<several>"

"""Tags of the two forms of `method`; part of where pydantic says that a mistake is."""

Methods = Annotated[
    Annotated[MethodConfig, Tag(ONE)] | Annotated[tuple[MethodConfig, ...], Tag(SEVERAL)],
    Discriminator(lambda value: SEVERAL if isinstance(value, list | tuple) else ONE),
]


class SaliencyConfig(Section):
    """Where the foreground of an image is, for SGD-Mix."""

    teacher: Literal["classifier"] | Path = "classifier"
    """Whose gaze counts: the `classifier` being trained, or a file of weights, from the start."""
    name: str | None = None
    """timm name of the model in that file; null is `classifier.name`."""
    method: Literal["grad_cam", "spectral_residual"] = "grad_cam"
    """`grad_cam` of the image's own class, or `spectral_residual`, which needs no teacher."""
    image_size: Pixels | None = None
    """Side of the square the teacher looks at, px; null is `data.image_size`; larger is finer."""
    refresh_epochs: Count = 5
    """Epochs between two versions of the maps where the classifier being trained is the teacher."""
    max_version_lag: Annotated[int, Field(ge=0)] = 1
    """Images made from maps up to this many versions old are still served."""


PRESETS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "da_fusion": {
        "method": {"strength": [1.0, 0.75, 0.5, 0.25]},
        "mixing": {"policy": "local", "synthetic_probability": 0.5},
        "generation": {"variants_per_image": 10},
        "finetune": {"mode": "textual_inversion"},
    },
}


def with_presets(values: Mapping[str, Any]) -> dict[str, Any]:
    """What a file and the command line say, with the presets of the method they name.

    Of several methods each gets its own `method` keys; what the run shares stays as it is said.

    Args:
        values: Sections by name; not checked yet, so anything may stand in the place of one.
    """
    method = values.get("method")
    if isinstance(method, list):
        several = [_filled(one, _preset_of(one).get("method", {})) for one in method]
        return {**values, "method": several}
    preset = _preset_of(method)
    filled = {name: _filled(values.get(name, {}), keys) for name, keys in preset.items()}
    return {**values, **filled}


def _preset_of(method: Any) -> Mapping[str, Mapping[str, Any]]:
    name = method.get("name") if isinstance(method, dict) else None
    return PRESETS.get(name, {}) if isinstance(name, str) else {}


def _filled(section: Any, preset: Mapping[str, Any]) -> Any:
    return {**preset, **section} if isinstance(section, dict) else section
