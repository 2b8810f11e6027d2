"""DeepSpeed's configuration: ours, with the person's settings merged under it."""

import json
from typing import Any

from online_aug.config import Config
from online_aug.errors import UserError

# Keys that would contradict settings of ours, and what to set instead.
OWNED = {
    "train_batch_size": "set optim.batch_size",
    "train_micro_batch_size_per_gpu": "set optim.batch_size and devices.train",
    "gradient_accumulation_steps": "set optim.accumulation",
    "gradient_clipping": "set optim.clip_grad",
    "optimizer": "set optim.name, optim.lr, optim.weight_decay, optim.momentum",
    "scheduler": "set optim.schedule and optim.warmup_epochs",
    "bf16": "set classifier.precision",
    "bfloat16": "set classifier.precision",
    "fp16": "set classifier.precision",
    "amp": "set classifier.precision",
    "torch_autocast": "set classifier.precision",
    "checkpoint": "checkpoints are written to the run directory",
}
DEFAULTS: dict[str, Any] = {
    "zero_optimization": {"stage": 0},
    "zero_allow_untested_optimizer": True,  # a torch optimizer is one to DeepSpeed
    "zero_force_ds_cpu_optimizer": False,  # its own would be compiled; torch's work on a CPU
    "steps_per_print": None,
}
STAGES = (0, 1, 2, 3)


def deepspeed_config(config: Config, world_size: int) -> dict[str, Any]:
    """What `deepspeed.initialize` gets: our defaults, `classifier.deepspeed`, our own keys.

    A key of ours may be given where it agrees: with our value, as `auto`, or as disabled.

    Raises:
        UserError: If the batch cannot be divided between the ranks, a setting contradicts ours, or
            the weights are to be divided and averaged at once.
    """
    own, given = _own_settings(config, world_size), config.classifier.deepspeed
    conflicts = [
        f"{key} ({json.dumps(given[key])}: {OWNED[key]})"
        for key in sorted(given.keys() & OWNED.keys())
        if not _agrees(given[key], own.get(key))
    ]
    if conflicts:
        raise UserError(f"classifier.deepspeed must not set {'; '.join(conflicts)}")
    free = {key: value for key, value in given.items() if key not in OWNED}
    merged = {**DEFAULTS, **free, **own}
    _check_stage(merged["zero_optimization"])
    if zero_stage(config) == max(STAGES) and config.optim.ema is not None:
        raise UserError(
            "optim.ema must be null with ZeRO stage 3, which keeps no whole weights to average, "
            f"got {config.optim.ema:g}"
        )
    return merged


def _own_settings(config: Config, world_size: int) -> dict[str, Any]:
    per_rank = rank_batch_size(config, world_size)
    parts, precision = config.optim.accumulation, config.classifier.precision
    return {
        "train_batch_size": per_rank * world_size,
        "train_micro_batch_size_per_gpu": per_rank // parts,
        "gradient_accumulation_steps": parts,
        "gradient_clipping": config.optim.clip_grad or 0.0,
        "torch_autocast": {"enabled": precision != "float32", "dtype": precision},
    }


def _agrees(given: Any, own: Any) -> bool:
    is_disabled = isinstance(given, dict) and given.get("enabled") is False
    return given == "auto" or is_disabled or (own is not None and given == own)


def rank_batch_size(config: Config, world_size: int) -> int:
    """Images a step on each rank.

    Raises:
        UserError: If `optim.batch_size` is not a multiple of the number of ranks, or the share of
            each not of `optim.accumulation`.
    """
    batch_size, parts = config.optim.batch_size, config.optim.accumulation
    if batch_size % world_size:
        raise UserError(
            f"optim.batch_size must be a multiple of the {world_size} training devices, "
            f"got {batch_size}"
        )
    if batch_size // world_size % parts:
        raise UserError(
            f"optim.accumulation must divide the {batch_size // world_size} images of a step on "
            f"each device, got {parts}"
        )
    return batch_size // world_size


def zero_stage(config: Config) -> int:
    """How much of the training state is divided between the ranks."""
    return int(config.classifier.deepspeed.get("zero_optimization", {}).get("stage", 0))


def _check_stage(zero: Any) -> None:
    stage = zero.get("stage", 0) if isinstance(zero, dict) else zero
    if stage not in STAGES:
        raise UserError(
            f"classifier.deepspeed.zero_optimization must be {{stage: 0, 1, 2 or 3}}, got {zero!r}"
        )
