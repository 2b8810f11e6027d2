"""The timm classifier: built, loaded with weights, and checked before a run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from cache.text import nearest_hint
from online_aug.config.sections import ClassifierConfig
from online_aug.errors import UserError
from online_aug.seeding import torch_global_state

_SHOWN_NAMES = 3
_REFUSALS = (RuntimeError, TypeError, ValueError, AssertionError, ZeroDivisionError)
"""Errors that networks raise for settings or images they were not made for."""


def build_classifier(
    config: ClassifierConfig,
    num_classes: int,
    *,
    image_size: int | None = None,
    seed: int = 0,
    key: str = "classifier.checkpoint",
) -> nn.Module:
    """Build a timm classifier on the CPU, with a new head or the weights the configuration names.

    Args:
        config: Name, weights and dropout.
        num_classes: Outputs of the head.
        image_size: Side of the images it will see, px; only used by models that are built for one
            size (most vision transformers).
        seed: Seed of the initial weights; PyTorch's global state is left alone.
        key: Configuration key of `config.checkpoint`, for error messages.

    Raises:
        UserError: If timm does not know the name, or the weights are missing or do not fit.
    """
    check_name(config.name)
    with torch_global_state(seed):
        classifier = _create(config, num_classes, image_size)
    if config.checkpoint is not None:
        _load_checkpoint(classifier, config.checkpoint, config.name, key)
    return classifier


def input_statistics(classifier: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the channel means and deviations that a model expects, for values in [0, 1]."""
    found = resolve_model_data_config(classifier)
    return tuple(found["mean"]), tuple(found["std"])


def prepare_training(classifier: nn.Module, config: ClassifierConfig) -> None:
    """Put the classifier in training mode, or with `classifier.head_only` only its head.

    Raises:
        UserError: If only the head is to be trained and timm does not know the model's head.
    """
    classifier.train()
    if not config.head_only:
        return
    heads = _heads(classifier)
    if not heads:
        raise UserError(f"classifier.head_only must be false for {config.name}, which has no head")
    classifier.requires_grad_(False).eval()
    classifier.training = True  # the mode that dropout before the head follows
    for head in heads:
        head.requires_grad_(True).train()


def _heads(classifier: Any) -> list[nn.Module]:
    found = classifier.get_classifier()
    heads = found if isinstance(found, tuple) else (found,)
    return [head for head in heads if any(True for _ in head.parameters())]


def check_classifier(config: ClassifierConfig) -> None:
    """Raise if a classifier obviously cannot be built, without building it.

    Raises:
        UserError: If timm does not know the name, or the file of weights is missing.
    """
    check_name(config.name)
    _check_checkpoint(config.checkpoint)


def check_fit(config: ClassifierConfig, num_classes: int, image_size: int) -> None:
    """Raise if the weights are for other classes, or the images too small for the network.

    The network is built to find out, but only if there are weights or the images are smaller than
    those it was made for.

    Raises:
        UserError: If the weights or the images do not fit.
    """
    cfg = None if ":" in config.name else timm.get_pretrained_cfg(config.name)
    is_small = cfg is not None and image_size < max(cfg.input_size)
    if config.checkpoint is None and not is_small:
        return
    bare = config.model_copy(update={"pretrained": False})
    classifier = build_classifier(bare, num_classes, image_size=image_size).eval()
    try:
        with torch.no_grad():
            classifier(torch.zeros(1, 3, image_size, image_size))
    except _REFUSALS as error:
        raise UserError(
            f"data.image_size must be a size that {config.name} can take, got {image_size}: "
            f"{first_line(error)}"
        ) from None


def check_precision(config: ClassifierConfig, devices: Sequence[str]) -> None:
    """Raise if a training device does not support `classifier.precision`.

    Raises:
        UserError: If it does not; names the formats that it supports.
    """
    on_cpu = any(device.startswith("cpu") for device in devices)
    if config.precision == "float16" and on_cpu:
        raise UserError(
            "classifier.precision must be float32 or bfloat16 on a CPU, which does not train in "
            "float16, got float16"
        )
    if config.precision == "bfloat16" and not on_cpu and not torch.cuda.is_bf16_supported():
        raise UserError(
            "classifier.precision must be float32 or float16 on these GPUs, which do not compute "
            "in bfloat16, got bfloat16"
        )


def check_name(name: str, key: str = "classifier.name") -> None:
    """Raise if timm does not know a model.

    Args:
        name: Name of the model, with or without a tag of weights.
        key: Configuration key of the name, for the error message.

    Raises:
        UserError: If timm does not know it; names the nearest models.
    """
    architecture = name.split(".")[0]
    if ":" in name or timm.is_model(architecture):
        return
    hint = nearest_hint(architecture, timm.list_models())
    raise UserError(f"{key} must be a timm model, got {name!r}{hint}")


def _create(config: ClassifierConfig, num_classes: int, image_size: int | None) -> nn.Module:
    # A checkpoint replaces downloaded weights.
    pretrained = config.pretrained and config.checkpoint is None
    try:
        classifier: nn.Module = timm.create_model(
            config.name,
            pretrained=pretrained,
            num_classes=num_classes,
            drop_rate=config.drop_rate,
            **_size_option(config.name, image_size),
        )
        return classifier
    except OSError as error:
        raise UserError(
            f"classifier.pretrained must be false where the weights of {config.name} cannot be "
            f"downloaded ({first_line(error)}): give a file of weights as classifier.checkpoint"
        ) from None
    except _REFUSALS as error:
        raise UserError(
            f"classifier.name must be a timm model that can be built with these settings, got "
            f"{config.name!r}: {first_line(error)}"
        ) from None


def sees_one_size(name: str) -> bool:
    """Return whether a model only takes images of the size it was built for."""
    cfg = None if ":" in name else timm.get_pretrained_cfg(name)
    return cfg is not None and bool(cfg.fixed_input_size)


def _size_option(name: str, image_size: int | None) -> dict[str, int]:
    is_fixed = image_size is not None and sees_one_size(name)
    return {"img_size": image_size} if is_fixed and image_size is not None else {}


def _load_checkpoint(classifier: nn.Module, path: Path, name: str, key: str) -> None:
    weights = _read_weights(path, key)
    expected = classifier.state_dict()
    problems = [
        *_listed("lacks", sorted(expected.keys() - weights.keys())),
        *_listed("has unknown", sorted(weights.keys() - expected.keys())),
        *_listed("differs in shape in", _other_shapes(expected, weights)),
    ]
    if problems:
        raise UserError(
            f"{key} must hold the weights of {name} with "
            f"{getattr(classifier, 'num_classes', '?')} classes, {path} {' and '.join(problems)}"
        )
    classifier.load_state_dict(weights)


def _check_checkpoint(path: Path | None, key: str = "classifier.checkpoint") -> None:
    if path is not None and not path.is_file():
        raise UserError(f"{key} must be a file of weights, got {path}")


def _read_weights(path: Path, key: str) -> Mapping[str, Tensor]:
    _check_checkpoint(path, key)
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # each format has its own kind of failure
        raise UserError(
            f"{key} must be safetensors or a torch.save of plain tensors, "
            f"cannot read {path}: {first_line(error)}"
        ) from None
    if isinstance(weights, dict) and isinstance(weights.get("state_dict"), dict):
        weights = weights["state_dict"]
    if isinstance(weights, dict) and all(isinstance(v, Tensor) for v in weights.values()):
        return weights
    raise UserError(f"{key} must hold named tensors, {path} holds something else")


def _other_shapes(expected: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> list[str]:
    return [
        f"{name} ({tuple(weights[name].shape)}, needs {tuple(expected[name].shape)})"
        for name in expected
        if name in weights and weights[name].shape != expected[name].shape
    ]


def _listed(verb: str, names: list[str]) -> list[str]:
    if not names:
        return []
    more = f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
    return [f"{verb} {', '.join(names[:_SHOWN_NAMES])}{more}"]


def first_line(error: Exception) -> str:
    """Return the first line of a library's error, to be quoted in a message of ours."""
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
