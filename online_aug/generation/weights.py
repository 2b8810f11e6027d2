"""Weights: names and shapes as the head of a file tells them, whether it is whole, and finite."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn

from online_aug.errors import UserError, one_line

Shape = tuple[int, ...]

_WEIGHTED_PARTS = ("unet", "vae", "text_encoder")
_STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")


def check_weights(model: Path, vae: Path | None = None) -> None:
    """Refuse a model with weights that are missing, cut short or something else; loads nothing.

    Args:
        model: Its directory.
        vae: That of an autoencoder that takes the place of its own.

    Raises:
        UserError: If a file is not whole; names it.
    """
    for part in _WEIGHTED_PARTS:
        tensor_shapes(model / part)
    if vae is not None:
        tensor_shapes(vae, "generation.vae")


def tensor_shapes(part: Path, key: str = "generation.model") -> dict[str, Shape]:
    """Shape of every tensor by its name, in the files diffusers would load for a part of a model.

    Args:
        part: Its directory.
        key: Of the configuration, which named it.

    Raises:
        UserError: If there are no weights or a file is not whole.
    """
    found: dict[str, Shape] = {}
    for path in _weight_files(part, key):
        try:
            found.update(_shapes(path))
        except Exception as error:  # whatever a damaged file makes torch or safetensors raise
            raise UserError(
                f"{key} must have whole weight files, got {path} "
                f"({one_line(error)}): fetch or copy it again"
            ) from error
    return found


def first_not_finite(components: Mapping[str, object]) -> str | None:
    """The first weight with NaN or infinity in it, such as `unet conv_in.weight`; None without.

    Args:
        components: Of a pipeline, by name; those that are no networks have none.
    """
    for part, network in components.items():
        if isinstance(network, nn.Module):
            for name, tensor in network.named_parameters():
                if not tensor.isfinite().all():
                    return f"{part} {name}"
    return None


def _weight_files(part: Path, key: str) -> list[Path]:
    for suffix in (".safetensors", ".bin"):
        for stem in _STEMS:
            index = part / f"{stem}{suffix}.index.json"
            if index.is_file():
                return _shards(index, key)
            if (part / f"{stem}{suffix}").is_file():
                return [part / f"{stem}{suffix}"]
    raise UserError(f"{key} must have weights in {part}, got neither .safetensors nor .bin")


def _shards(index: Path, key: str) -> list[Path]:
    try:
        names = set(json.loads(index.read_text())["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{key} must have a whole {index}, got {error!r}") from None
    return [index.parent / name for name in sorted(names)]


def _shapes(path: Path) -> dict[str, Shape]:
    if path.suffix == ".bin":
        tensors = torch.load(path, map_location="meta", weights_only=True)
        return {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    with safe_open(path, framework="pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
