"""Models that were distilled to few steps: consistency models and turbo, and what they need."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from online_aug.config_generation import GenerationConfig
from online_aug.errors import UserError
from online_aug.generation.model_settings import scheduler_settings, unet_settings

FEW_STEPS = 4
MOST_LCM_GUIDANCE = 2.0
"""Of a model with LCM-LoRA; it was distilled with guidance, and more burns the colours."""


def check_few_steps(config: GenerationConfig, model: Path) -> None:
    """Refuse settings by which a model of few steps makes no images, or another makes none.

    Args:
        config: Solver, steps and guidance.
        model: A directory that has been checked to be a model.

    Raises:
        UserError: If they do not go together.
    """
    if unet_settings(model).get("time_cond_proj_dim"):
        _check_consistency(config, model)
    elif config.scheduler == "lcm":
        _check_lcm_guidance(config)
    else:
        _check_turbo(config, model, scheduler_settings(model))


def _check_consistency(config: GenerationConfig, model: Path) -> None:
    if config.scheduler != "lcm":
        raise UserError(
            f"generation.scheduler must be lcm for {model}, a consistency model that reads its "
            f"guidance scale, got {config.scheduler}"
        )


def _check_lcm_guidance(config: GenerationConfig) -> None:
    if config.guidance_scale > MOST_LCM_GUIDANCE:
        raise UserError(
            "generation.guidance_scale must be at most 2 with generation.scheduler lcm, got "
            f"{config.guidance_scale:g}: consistency models were distilled with guidance, 1 adds "
            "none"
        )


def _check_turbo(config: GenerationConfig, model: Path, schedule: Mapping[str, Any]) -> None:
    steps, is_trailing = config.num_inference_steps, schedule.get("timestep_spacing") == "trailing"
    if steps == 1 and not is_trailing:
        raise UserError(
            "generation.num_inference_steps must be at least 2 for a model whose one step would "
            f'begin without noise, got 1: turbo models have "timestep_spacing": "trailing" in '
            f"scheduler/scheduler_config.json, {model} has not"
        )
    was_distilled = is_trailing and not schedule.get("rescale_betas_zero_snr")
    if steps <= FEW_STEPS and was_distilled and config.guidance_scale > 1:
        raise UserError(
            f"generation.guidance_scale must be 1 for {steps} steps of {model}, which by its "
            f"spacing of time steps is a turbo model, got {config.guidance_scale:g}"
        )
