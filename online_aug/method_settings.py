"""What a method needs beside the common context, made from the configuration."""

from online_aug.config import Config
from online_aug.config_method import MethodConfig
from online_aug.fractals import FractalBank
from online_aug.methods import DiffuseMixSettings, SgdMixSettings


def settings_of(
    config: Config, fractals: FractalBank | None
) -> DiffuseMixSettings | SgdMixSettings | None:
    """The settings of the configured method; None for one that needs no more than all have.

    Args:
        config: Of the run.
        fractals: What DiffuseMix blends in; None for another method.
    """
    if config.method.name == "sgd_mix":
        return _sgd_mix(config.method)
    return None if fractals is None else _diffusemix(config, fractals)


def instructions_of(method: MethodConfig) -> dict[str, str]:
    """DiffuseMix's prompts: what the model reads, and the configured word for it."""
    if method.name != "diffusemix":
        return {}
    return {method.template.replace("{prompt}", prompt): prompt for prompt in method.prompts}


def _diffusemix(config: Config, fractals: FractalBank) -> DiffuseMixSettings:
    method = config.method
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
    )
