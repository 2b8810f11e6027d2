"""Weights: names and shapes as the head of a file tells them, whether it is whole, and finite.

Models that were distilled to few steps: consistency models and turbo, and what they need.

Models that a name of the hub stands for, and what is said where they cannot be had.

What the directory of a model says of its parts, read without loading them.

A tiny autoencoder in place of a model's own: where it is, and whether it fits the model.
"""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import nn

from online_aug.config.generation import GenerationConfig
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


_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


def fetch(key: str, wanted: str, name: str, download: Callable[[], str]) -> Path:
    """The directory into which a model is downloaded, once.

    Args:
        key: Of the configuration, which names the model.
        wanted: What else it may name.
        name: What it names.
        download: Gives the directory.

    Raises:
        UserError: If that is no name of the hub, or not to be had there.
    """
    rule = f"{key} must be {wanted}, or a hub name that can be reached, got {name!r}"
    if not _NAME.fullmatch(name):
        raise UserError(f"{rule}, which is no directory here")
    try:
        return Path(download())
    except Exception as error:  # whatever its network library of the day raises
        raise UserError(
            f"{rule} ({_root(error)}): where there is a network, hf download {name} --local-dir "
            "DIR fetches it; then give that directory"
        ) from error


def _root(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    words = one_line(error) if isinstance(error, Exception) else repr(error)
    return words.partition(" (Request ID")[0]


def scheduler_settings(model: Path) -> Mapping[str, Any]:
    """How it was trained, and how its time steps are spaced.

    Raises:
        UserError: If the file cannot be read.
    """
    return _read(model / "scheduler" / "scheduler_config.json")


def unet_settings(model: Path) -> Mapping[str, Any]:
    """What its network is built of and takes.

    Raises:
        UserError: If the file cannot be read.
    """
    return _read(model / "unet" / "config.json")


def _read(path: Path) -> Mapping[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"generation.model must have a readable {path}, got {error!r}") from None


_WANTED = "a directory with diffusers' AutoencoderTiny"
_HUB_FILES = ("config.json", "diffusion_pytorch_model*")


class Latents(NamedTuple):
    """What two autoencoders have in common where one may take the place of the other."""

    channels: int
    encoded_px: int
    """Side of the pixels that become one cell."""
    decoded_px: int


def locate_vae(name: str | None, model: Path) -> Path | None:
    """The directory of the configured autoencoder; None where the model keeps its own.

    Args:
        name: A directory, or a hub name, which is downloaded.
        model: Directory of the model whose latents it has to make and read.

    Raises:
        UserError: If there is none, it is of another class, or its latents are not the model's.
    """
    if name is None:
        return None
    folder = Path(name).expanduser()
    if not folder.is_dir():
        folder = _download(name)
    (kind, own), (_, wanted) = _read_vae(folder), _read_vae(model / "vae")
    if kind != "AutoencoderTiny":
        raise UserError(f"generation.vae must be {_WANTED}, got {folder}, which holds {kind}")
    if own != wanted:
        raise UserError(
            f"generation.vae must make and read the model's latents ({_said(wanted)}), got "
            f"{folder} ({_said(own)})"
        )
    return folder


def _read_vae(folder: Path) -> tuple[str, Latents]:
    """What an autoencoder is, and its latents."""
    try:
        config = json.loads((folder / "config.json").read_text())
        return config["_class_name"], _latents(config)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"generation.vae must be {_WANTED}, cannot read {folder / 'config.json'}: "
            f"{one_line(error)}"
        ) from None


def _latents(config: Mapping[str, Any]) -> Latents:
    encoder = config.get("encoder_block_out_channels") or config["block_out_channels"]
    decoder = config.get("decoder_block_out_channels") or encoder
    return Latents(config["latent_channels"], 2 ** (len(encoder) - 1), 2 ** (len(decoder) - 1))


def _said(latents: Latents) -> str:
    channels, encoded, decoded = latents
    sides = f"{encoded}" if encoded == decoded else f"{encoded} encoded, {decoded} decoded"
    return f"{channels} channels, a cell of {sides} px"


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download  # slow to import, rarely needed

    return fetch(
        "generation.vae",
        _WANTED,
        name,
        lambda: snapshot_download(name, allow_patterns=list(_HUB_FILES)),
    )
