"""Models of few steps: the adapters that make them, and the settings that they need.

An adapter is a LoRA that was distilled from a model (LCM-LoRA, arXiv:2311.05556). It is added to
the model after what fine-tuning has learned, so fine-tuning knows nothing of it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from online_aug.config.sections import GenerationConfig
from online_aug.diffusion.directory import fetch, scheduler_settings, unet_settings
from online_aug.diffusion.lora_files import PEFT_SETTINGS, LoraFile, holds_lora
from online_aug.diffusion.weights import digest_files
from online_aug.errors import UserError
from online_aug.settings import decided

FEW_STEPS = 4
"""Steps of a model that was distilled to few."""
MAX_TURBO_STEPS = 4
"""A turbo model run for so few steps or fewer takes no guidance."""
MAX_LCM_GUIDANCE = 2.0
"""For a model with LCM-LoRA: it was distilled with guidance, and more burns the colours."""
GUIDANCE, UNGUIDED = "distilled_guidance", "none"
"""What the head of an adapter's file says if it was distilled without guidance."""
_KEY = "generation.few_step_adapter"
_ALLOWED = "a LoRA file or a folder with one"


def locate_few_step_adapter(name: str | None) -> Path | None:
    """Return the file of the configured adapter; download it if it is a name of the hub.

    Args:
        name: A file, a folder with one LoRA, or a name of the hub; None for none.

    Raises:
        UserError: If there is no such adapter, or a folder has several.
    """
    if name is None:
        return None
    path = Path(name).expanduser()
    if path.is_file():
        return path
    if not path.is_dir():
        path = fetch(_KEY, _ALLOWED, name, lambda: _download(name))
    found = [file for file in sorted(path.glob("*")) if file.is_file() and holds_lora(file)]
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise UserError(f"{_KEY} must be {_ALLOWED}, got {path} with {names}")
    return found[0]


def _download(name: str) -> str:
    from huggingface_hub import snapshot_download  # slow to import, rarely needed

    return str(snapshot_download(name, allow_patterns=["*.safetensors", PEFT_SETTINGS]))


def read_few_step_adapter(path: Path, model: Path) -> Path | Mapping[str, Tensor]:
    """Read the matrices of an adapter by diffusers' names and check each against its layer.

    Args:
        path: The file.
        model: Directory of the model that it is added to.

    Returns:
        The matrices, or the file itself if diffusers reads from its head how strong they are.

    Raises:
        UserError: If it is no LoRA of the model's U-Net.
    """
    return LoraFile(path, _KEY).read(model)


def digest_few_step_adapter(path: Path) -> str:
    """Return the digest of an adapter, with that of peft's settings beside it."""
    settings = path.parent / PEFT_SETTINGS
    return digest_files(path.parent, [path, *[settings] * settings.is_file()])


def check_few_steps(config: GenerationConfig, model: Path) -> None:
    """Raise if solver, steps and guidance ruin the images of a model.

    Consistency models (LCM) and turbo models were distilled to few steps and need certain
    settings; other models make no image in one step.

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
    if config.guidance_scale > MAX_LCM_GUIDANCE and not _has_no_guidance(config):
        raise UserError(
            "generation.guidance_scale must be at most 2 with generation.scheduler lcm, got "
            f"{config.guidance_scale:g}: consistency models were distilled with guidance, 1 adds "
            "none"
        )


def _has_no_guidance(config: GenerationConfig) -> bool:
    """Tell whether the model is known not to have been distilled with guidance."""
    adapter = locate_few_step_adapter(config.few_step_adapter)
    return _is_unguided(adapter) if adapter else config.model == "embedded"


def _is_unguided(adapter: Path) -> bool:
    if adapter.suffix != ".safetensors":
        return False
    with safe_open(adapter, framework="pt") as file:
        return (file.metadata() or {}).get(GUIDANCE) == UNGUIDED


def _check_turbo(config: GenerationConfig, model: Path, schedule: Mapping[str, Any]) -> None:
    steps = decided(config.num_inference_steps)
    is_trailing = schedule.get("timestep_spacing") == "trailing"
    if steps == 1 and not is_trailing:
        raise UserError(
            "generation.num_inference_steps must be at least 2 for a model whose one step would "
            f'begin without noise, got 1: turbo models have "timestep_spacing": "trailing" in '
            f"scheduler/scheduler_config.json, {model} has not"
        )
    if steps <= MAX_TURBO_STEPS and is_turbo(schedule) and config.guidance_scale > 1:
        raise UserError(
            f"generation.guidance_scale must be 1 for {steps} steps of {model}, which by its "
            f"spacing of time steps is a turbo model, got {config.guidance_scale:g}"
        )


def is_turbo(schedule: Mapping[str, Any]) -> bool:
    """Tell by the spacing of its time steps whether a model is a turbo model.

    Args:
        schedule: Settings of the model's own scheduler.
    """
    is_trailing = schedule.get("timestep_spacing") == "trailing"
    return is_trailing and not schedule.get("rescale_betas_zero_snr")
