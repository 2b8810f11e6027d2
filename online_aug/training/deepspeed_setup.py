"""A DeepSpeed engine around a classifier: settings, construction, checkpoint files.

The user's settings (`classifier.deepspeed`) are merged with ours. `check_deepspeed` tries them in a
process of its own before a run begins, because only DeepSpeed knows which of them go together, and
only says so when an engine is built. Files are read without running code in them.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from online_aug.classifier.optim import build_optimizer
from online_aug.config import Config
from online_aug.config.loading import load_config, resolved_yaml
from online_aug.distributed.identity import RANK_VARIABLES, identify
from online_aug.distributed.world import World, set_environment
from online_aug.errors import UserError, one_line

_LARGEST_BUCKET = 500_000_000
"""DeepSpeed's own bucket for gradients, in numbers, whatever the size of the network."""


def start_engine(classifier: nn.Module, config: Config, world: World) -> Any:
    """Build DeepSpeed's engine for a classifier on the rank's device.

    Raises:
        UserError: If batch size, optimizer or `classifier.deepspeed` cannot be used.
    """
    import deepspeed

    settings = deepspeed_config(config, world.world_size)
    settings["zero_optimization"] = _bucket_of(classifier) | settings["zero_optimization"]
    # DeepSpeed takes the device from here and insists on the launcher's variable.
    place = SimpleNamespace(device_rank=world.device.index or 0)
    with set_environment(LOCAL_RANK=str(world.local_rank)):
        _check_settings(settings)
        optimizer = build_optimizer(classifier, config.optim)
        with _saying_what_does_not_fit(config):
            engine, *_ = deepspeed.initialize(
                args=place,
                model=classifier,
                optimizer=optimizer,
                config=settings,
                dist_init_required=False,
            )
    engine.checkpoint_engine.load = _load_plain
    return engine


def load_converted(engine: Any, folder: Path, tag: str) -> None:
    """Load a checkpoint in DeepSpeed's universal form; all ranks call it.

    Args:
        engine: Engine with ZeRO stage 1 or 2.
        folder: Folder that holds the checkpoint.
        tag: Name of the checkpoint in it.

    Raises:
        Exception: By torch or DeepSpeed, if a file is damaged or holds more than plain values.
    """
    _allow_plain_classes()
    settings = engine._config
    settings.load_universal_checkpoint = True
    try:
        # DeepSpeed's own way to read these files runs what they bring; so every read is forced.
        with set_environment(TORCH_FORCE_WEIGHTS_ONLY_LOAD="1"):
            engine.load_checkpoint(str(folder), tag=tag)
    finally:
        settings.load_universal_checkpoint = False


def copy_whole(divided: nn.Module, whole: nn.Module) -> None:
    """Copy weights that ZeRO stage 3 has divided; all ranks call it.

    Args:
        divided: Module of the engine.
        whole: The same network with whole weights, which are overwritten.
    """
    import deepspeed

    with torch.no_grad(), deepspeed.zero.GatheredParameters(list(divided.parameters())):
        ours = whole.state_dict(keep_vars=True)
        for name, theirs in divided.state_dict(keep_vars=True).items():
            ours[name].copy_(theirs)


def save_plain(state: dict[str, Any], path: Path) -> None:
    """Write a state that can be read back without running code.

    Raises:
        TypeError: If `state` holds anything but plain values, containers and tensors.
    """
    torch.save(state, path)
    try:
        torch.load(path, weights_only=True)
    except Exception as error:
        raise TypeError(f"client_state must hold plain values and tensors only: {error}") from None


def _bucket_of(classifier: nn.Module) -> dict[str, int]:
    # No larger than the gradients: DeepSpeed's default takes 2 GB of a device.
    numbers = sum(weight.numel() for weight in classifier.parameters())
    return {"reduce_bucket_size": min(_LARGEST_BUCKET, numbers)}


@contextmanager
def _saying_what_does_not_fit(config: Config) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # DeepSpeed refuses by all kinds of them
        if not config.classifier.deepspeed:
            raise
        raise UserError(
            "classifier.deepspeed must be settings that DeepSpeed can train "
            f"{config.classifier.name} with {config.optim.name} under: {one_line(error)}"
        ) from error


def _check_settings(settings: dict[str, Any]) -> None:
    import deepspeed

    try:
        deepspeed.DeepSpeedConfig(settings)
    except (ValueError, AssertionError, TypeError, deepspeed.DeepSpeedConfigError) as error:
        said = "; ".join(line.strip() for line in str(error).splitlines())
        raise UserError(f"classifier.deepspeed must be settings of DeepSpeed: {said}") from None


def _load_plain(path: str, map_location: Any = None) -> Any:
    """Replace DeepSpeed's loader, which runs whatever code a file brings."""
    _allow_plain_classes()
    return torch.load(path, map_location=map_location, weights_only=True)


def _allow_plain_classes() -> None:
    """Let the classes of plain values be read that DeepSpeed writes into its files."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    known = [DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]
    torch.serialization.add_safe_globals(known)


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
"""DeepSpeed's keys that settings of ours decide, and what to set instead."""
DEFAULTS: dict[str, Any] = {
    "zero_optimization": {"stage": 0},
    "zero_allow_untested_optimizer": True,  # a torch optimizer is one to DeepSpeed
    "zero_force_ds_cpu_optimizer": False,  # its own would be compiled; torch's work on a CPU
    "steps_per_print": None,
}
STAGES = (0, 1, 2, 3)


def deepspeed_config(config: Config, world_size: int) -> dict[str, Any]:
    """Return the settings for `deepspeed.initialize`: our defaults, the user's, our own keys.

    A key of ours may be given if it agrees: with our value, as `auto`, or as disabled.

    Raises:
        UserError: If the batch cannot be divided among the ranks, a setting contradicts ours, or
            weights are to be divided and averaged at once.
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
        "train_micro_batch_size_per_gpu": part_size(config, world_size),
        "gradient_accumulation_steps": parts,
        "gradient_clipping": config.optim.clip_grad or 0.0,
        "torch_autocast": {"enabled": precision != "float32", "dtype": precision},
    }


def _agrees(given: Any, own: Any) -> bool:
    is_disabled = isinstance(given, dict) and given.get("enabled") is False
    return given == "auto" or is_disabled or (own is not None and given == own)


def rank_batch_size(config: Config, world_size: int) -> int:
    """Return the images in a step on each rank.

    Raises:
        UserError: If `optim.batch_size` is not a multiple of the number of ranks, or the share of
            each is not a multiple of `optim.accumulation`.
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


def part_size(config: Config, world_size: int) -> int:
    """Return how many images a rank computes at a time; raise as `rank_batch_size`."""
    return rank_batch_size(config, world_size) // config.optim.accumulation


def zero_stage(config: Config) -> int:
    """Return the ZeRO stage: how much of the training state is divided among the ranks."""
    return int(config.classifier.deepspeed.get("zero_optimization", {}).get("stage", 0))


def _check_stage(zero: Any) -> None:
    stage = zero.get("stage", 0) if isinstance(zero, dict) else zero
    if stage not in STAGES:
        raise UserError(
            f"classifier.deepspeed.zero_optimization must be {{stage: 0, 1, 2 or 3}}, got {zero!r}"
        )


_SAID = "error: "


def check_deepspeed(config: Config, num_classes: int, device: str) -> None:
    """Refuse a `classifier.deepspeed` with which this classifier cannot be trained.

    An engine is built for one rank. Nothing is tried without such settings, nor in ranks that our
    own launcher has started, which has tried them.

    Args:
        config: Configuration of the run.
        num_classes: Number of classes.
        device: Training device, such as `cpu` or `cuda:0`.

    Raises:
        UserError: If DeepSpeed refuses them.
    """
    if not config.classifier.deepspeed or identify().is_ours:
        return
    done = subprocess.run(
        [sys.executable, "-m", "online_aug.training.deepspeed_setup", str(num_classes), device],
        env={name: value for name, value in os.environ.items() if name not in RANK_VARIABLES},
        cwd=Path(__file__).parents[2],  # where the package lies
        input=resolved_yaml(config),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line]
        said = [line.removeprefix(_SAID) for line in lines if line.startswith(_SAID)]
        unsaid = f"classifier.deepspeed could not be tried (status {done.returncode})"
        raise UserError(next(iter([*said, ": ".join([unsaid, *lines[-1:]])])))


def main(argv: Sequence[str]) -> None:
    """Build an engine of the configuration on standard input; arguments: classes and device."""
    from online_aug.classifier.model import build_classifier
    from online_aug.distributed.world import end_distributed, start_distributed
    from online_aug.training.engine import TrainingEngine

    num_classes, device = argv
    config = load_config(Path("/dev/stdin"))
    # Settings do not depend on the weights, which may be a download.
    bare = config.classifier.model_copy(update={"pretrained": False, "checkpoint": None})
    world = start_distributed(device)
    image_size = config.data.image_size
    classifier = build_classifier(bare, int(num_classes), image_size=image_size)
    TrainingEngine(classifier, config, world, steps_per_epoch=1)
    end_distributed()


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(f"{_SAID}{error}")
