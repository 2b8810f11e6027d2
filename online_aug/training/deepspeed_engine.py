"""A DeepSpeed engine around a classifier, and its files read without running code in them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from online_aug.config import Config
from online_aug.errors import UserError, one_line
from online_aug.training.deepspeed_config import deepspeed_config
from online_aug.training.distributed import World, set_environment
from online_aug.training.optimizers import build_optimizer

_LARGEST_BUCKET = 500_000_000
"""Numbers that DeepSpeed sets aside for gradients on their way, whatever the network's size."""


def start_engine(classifier: nn.Module, config: Config, world: World) -> Any:
    """DeepSpeed's engine for a classifier on the rank's device.

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
        engine: With ZeRO stage 1 or 2.
        folder: That holds the checkpoint.
        tag: Its name there.

    Raises:
        Exception: Of torch or DeepSpeed, if a file is damaged or holds more than plain values.
    """
    for file in (folder / tag / "zero").rglob("*.pt"):
        _load_plain(
            str(file), map_location="meta"
        )  # DeepSpeed's own way to read runs what it finds
    settings = engine._config
    settings.load_universal_checkpoint = True
    try:
        engine.load_checkpoint(str(folder), tag=tag)
    finally:
        settings.load_universal_checkpoint = False


def copy_whole(divided: nn.Module, whole: nn.Module) -> None:
    """Copy weights that ZeRO stage 3 has divided; all ranks call it.

    Args:
        divided: The engine's module.
        whole: The same network with weights of its own.
    """
    import deepspeed

    with torch.no_grad(), deepspeed.zero.GatheredParameters(list(divided.parameters())):
        ours = whole.state_dict(keep_vars=True)
        for name, theirs in divided.state_dict(keep_vars=True).items():
            ours[name].copy_(theirs)


def save_plain(state: dict[str, Any], path: Path) -> None:
    """Write what can be read back without running code.

    Raises:
        TypeError: If `state` holds anything but plain values, containers and tensors.
    """
    torch.save(state, path)
    try:
        torch.load(path, weights_only=True)
    except Exception as error:
        raise TypeError(f"client_state must hold plain values and tensors only: {error}") from None


def _bucket_of(classifier: nn.Module) -> dict[str, int]:
    """No larger than the gradients are: DeepSpeed's own takes 2 GB of a device."""
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
    """Stands in for DeepSpeed's loader, which would run whatever code a file brings."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    known = [DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]
    with torch.serialization.safe_globals(known):
        return torch.load(path, map_location=map_location, weights_only=True)
