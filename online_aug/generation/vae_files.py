"""A tiny autoencoder in place of a model's own: where it is, and whether it fits the model."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from online_aug.errors import UserError, one_line
from online_aug.generation.hub import fetch

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
    (kind, own), (_, wanted) = _read(folder), _read(model / "vae")
    if kind != "AutoencoderTiny":
        raise UserError(f"generation.vae must be {_WANTED}, got {folder}, which holds {kind}")
    if own != wanted:
        raise UserError(
            f"generation.vae must make and read the model's latents ({_said(wanted)}), got "
            f"{folder} ({_said(own)})"
        )
    return folder


def _read(folder: Path) -> tuple[str, Latents]:
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
