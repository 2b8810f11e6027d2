"""What a method needs beside the common context, made from the configuration."""

from online_aug.config import Config
from online_aug.config_method import MethodConfig
from online_aug.fractals import FractalBank
from online_aug.methods import DiffuseMixSettings, SgdMixSettings


def settings_of(
    method: MethodConfig, config: Config, fractals: FractalBank | None
) -> DiffuseMixSettings | SgdMixSettings | None:
    """The settings of a configured method; None for one that needs no more than all have.

    Args:
        method: One of the run's.
        config: Of the run.
        fractals: What DiffuseMix blends in; None where the run has no such method.
    """
    if method.name == "sgd_mix":
        return _sgd_mix(method)
    if method.name != "diffusemix":
        return None
    assert fractals is not None  # the recipe has them where this method is
    return _diffusemix(method, config, fractals)


def instructions_of(method: MethodConfig) -> dict[str, str]:
    """DiffuseMix's prompts: what the model reads, and the configured word for it."""
    if method.name != "diffusemix":
        return {}
    return {method.template.replace("{prompt}", prompt): prompt for prompt in method.prompts}


def _diffusemix(method: MethodConfig, config: Config, fractals: FractalBank) -> DiffuseMixSettings:
    return DiffuseMixSettings(
        instructions=tuple(instructions_of(method)),
        takes_all=method.prompt_choice == "all",
        image_guidance_scale=config.generation.image_guidance_scale,
        masks=method.masks,
        seam=method.seam,
        fractal_weight=method.fractal_weight,
        fractals=fractals,
    )


def _sgd_mix(method: MethodConfig) -> SgdMixSettings:
    return SgdMixSettings(
        candidates=method.candidates,
        max_union_share=method.max_union_share,
        min_source_share=method.min_source_share,
        max_draws=method.max_draws,
        keeps_foreground=method.keeps_foreground,
    )
