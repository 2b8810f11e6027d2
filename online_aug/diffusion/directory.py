"""Model directories: find them, fetch them from the hub, read what they say about themselves.

Nothing here loads a model, so a configuration is checked in milliseconds.
"""

import re
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from online_aug.config.sections import GenerationConfig
from online_aug.diffusion.parts import (
    INDEX,
    check_parts,
    is_single_file,
    read_settings,
    single_file,
)
from online_aug.documents import DocumentError, read_object
from online_aug.errors import UserError, one_line
from online_aug.request import PipelineKind

_ASSETS = Path(str(files("online_aug"))) / "assets"
EMBEDDED: Mapping[PipelineKind, Path] = {
    "image_to_image": _ASSETS / "tiny_stable_diffusion",
    "instruct": _ASSETS / "tiny_instruct_pix2pix",
}
"""Directory of the model that `generation.model: embedded` means, by kind."""
_KINDS: Mapping[PipelineKind, str] = {
    "image_to_image": "a text-to-image model",
    "instruct": "an InstructPix2Pix",
}
_METHODS: Mapping[PipelineKind, str] = {
    "image_to_image": "this method",
    "instruct": "method.name diffusemix",
}
_MOST_LATENTS = 512
_MOST_BLOCKS, _USUAL_BLOCKS = 8, (128, 256, 512, 512)
_TINY_VAE = "a directory with diffusers' AutoencoderTiny"
_TINY_VAE_FILES = ("config.json", "diffusion_pytorch_model*")
_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


def locate_model(config: GenerationConfig, kind: PipelineKind) -> Path:
    """Return the directory of the configured model; download it if it is a name of the hub.

    Args:
        config: Names the model and its revision.
        kind: The kind of model that the method needs; `embedded` exists in each kind.

    Raises:
        UserError: If there is no such model, it lacks a part, or it is of another kind.
    """
    if config.model == "embedded":
        return EMBEDDED[kind]
    folder = Path(config.model).expanduser()
    if not folder.is_dir():
        if is_single_file(config.model):
            raise single_file("generation.model", config.model)
        folder = _download_model(config.model, config.revision, kind)
    if not (folder / INDEX).is_file():
        raise UserError(
            f"generation.model must be a diffusers model directory (with model_index.json), "
            f"got {config.model!r}"
        )
    check_parts(folder)
    if (found := kind_of(folder)) != kind:
        raise UserError(
            f"generation.model must be {_KINDS[kind]} for {_METHODS[kind]}, got {folder}, "
            f"which is {_KINDS[found]}"
        )
    return folder


def kind_of(folder: Path) -> PipelineKind:
    """Return the kind of a model, told by the input channels of its U-Net.

    The U-Net of an InstructPix2Pix reads the latents of the source image beside the noisy ones.

    Raises:
        UserError: If it is of neither kind, such as an inpainting model, whose U-Net reads a mask.
    """
    taken = _channels(folder / "unet" / "config.json", "in_channels")
    latent = _channels(folder / "vae" / "config.json", "latent_channels")
    if taken == latent:
        return "image_to_image"
    if taken == 2 * latent:
        return "instruct"
    raise UserError(
        f"generation.model must be {' or '.join(_KINDS.values())}, got {folder}, "
        f"whose U-Net takes {taken} channels for {latent} of the latents"
    )


def scheduler_settings(model: Path) -> Mapping[str, Any]:
    """Read the noise schedule that a model was trained with and the spacing of its time steps.

    Raises:
        UserError: If the file cannot be read.
    """
    return read_settings(model / "scheduler" / "scheduler_config.json")


def unet_settings(model: Path) -> Mapping[str, Any]:
    """Read the architecture of a model's U-Net.

    Raises:
        UserError: If the file cannot be read.
    """
    return read_settings(model / "unet" / "config.json")


def _channels(path: Path, name: str) -> int:
    count = read_settings(path).get(name, 4)  # of both classes the default
    if not isinstance(count, int):
        raise UserError(f"generation.model must have {name} as a number, got {count!r} in {path}")
    return count


def native_resolution(model: Path) -> int:
    """Return the side of the images that a model was trained on, px.

    Raises:
        UserError: If its files do not say.
    """
    latent, vae = unet_settings(model).get("sample_size"), read_settings(model / "vae/config.json")
    if not isinstance(latent, int) or isinstance(latent, bool) or not 1 <= latent <= _MOST_LATENTS:
        raise UserError(
            f"generation.resolution must be given for {model}, whose unet/config.json has no "
            f"whole sample_size, got {latent!r}"
        )
    blocks = vae.get("block_out_channels", _USUAL_BLOCKS)
    if not isinstance(blocks, list | tuple) or not 1 <= len(blocks) <= _MOST_BLOCKS:
        raise UserError(
            f"generation.resolution must be given for {model}, whose vae/config.json has no list "
            f"of block_out_channels, got {blocks!r}"
        )
    return int(latent * 2 ** (len(blocks) - 1))


class _LatentLayout(NamedTuple):
    """The shape of an autoencoder's latents; two autoencoders that share it fit one U-Net."""

    channels: int
    encoded_px: int
    """Side of the square of pixels that the encoder turns into one latent cell."""
    decoded_px: int
    """Side of the square of pixels that the decoder makes of one latent cell."""

    def __str__(self) -> str:
        sides = f"{self.encoded_px}"
        if self.encoded_px != self.decoded_px:
            sides = f"{self.encoded_px} encoded, {self.decoded_px} decoded"
        return f"{self.channels} channels, a cell of {sides} px"


def locate_vae(name: str | None, model: Path) -> Path | None:
    """Return the directory of the tiny autoencoder that replaces the model's own, if any.

    Args:
        name: A directory or a name of the hub, which is downloaded; None keeps the model's own.
        model: Directory of the model whose latents the autoencoder has to make and read.

    Raises:
        UserError: If it does not exist, is of another class, or makes latents of another shape.
    """
    if name is None:
        return None
    folder = Path(name).expanduser()
    if not folder.is_dir():
        if is_single_file(name):
            raise single_file("generation.vae", name)
        folder = _download_vae(name)
    (class_name, own), (_, wanted) = _read_vae(folder), _read_vae(model / "vae")
    if class_name != "AutoencoderTiny":
        raise UserError(
            f"generation.vae must be {_TINY_VAE}, got {folder}, which holds {class_name}"
        )
    if own != wanted:
        raise UserError(
            f"generation.vae must make and read the model's latents ({wanted}), got "
            f"{folder} ({own})"
        )
    return folder


def _read_vae(folder: Path) -> tuple[str, _LatentLayout]:
    try:
        config = read_object(folder / "config.json")
        return config["_class_name"], _latent_layout(config)
    except (DocumentError, KeyError, TypeError, OverflowError) as error:
        raise UserError(
            f"generation.vae must be {_TINY_VAE}, cannot read {folder / 'config.json'}: "
            f"{one_line(error)}"
        ) from None


def _latent_layout(config: Mapping[str, Any]) -> _LatentLayout:
    encoder = config.get("encoder_block_out_channels") or config["block_out_channels"]
    decoder = config.get("decoder_block_out_channels") or encoder
    return _LatentLayout(
        config["latent_channels"], 2 ** (len(encoder) - 1), 2 ** (len(decoder) - 1)
    )


def fetch(key: str, allowed: str, name: str, download: Callable[[], str]) -> Path:
    """Return the directory into which a model of the hub is downloaded, once.

    Args:
        key: Configuration key that names the model.
        allowed: Other values that the key may have, for the error.
        name: Value of the key.
        download: Downloads the model and returns its directory.

    Raises:
        UserError: If `name` cannot be a name of the hub, or the download fails.
    """
    rule = f"{key} must be {allowed}, or a hub name that can be reached, got {name!r}"
    if not _HUB_NAME.fullmatch(name):
        raise UserError(f"{rule}, which is no directory here")
    try:
        return Path(download())
    except Exception as error:  # whatever its network library of the day raises
        raise UserError(
            f"{rule} ({_first_cause(error)}): where there is a network, hf download {name} "
            "--local-dir DIR fetches it; then give that directory"
        ) from error


def _first_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    words = one_line(error) if isinstance(error, Exception) else repr(error)
    return words.partition(" (Request ID")[0]


def _download_model(name: str, revision: str | None, kind: PipelineKind) -> Path:
    import diffusers  # slow to import, rarely needed

    pipeline = diffusers.StableDiffusionImg2ImgPipeline
    if kind == "instruct":
        pipeline = diffusers.StableDiffusionInstructPix2PixPipeline

    def download() -> str:
        verbosity = diffusers.logging.get_verbosity()
        diffusers.logging.set_verbosity_error()  # a missing network is reported once, by `fetch`
        try:
            return str(
                pipeline.download(
                    name, revision=revision, safety_checker=None, requires_safety_checker=False
                )
            )
        finally:
            diffusers.logging.set_verbosity(verbosity)

    return fetch("generation.model", "'embedded', a diffusers model directory", name, download)


def _download_vae(name: str) -> Path:
    from huggingface_hub import snapshot_download  # slow to import, rarely needed

    return fetch(
        "generation.vae",
        _TINY_VAE,
        name,
        lambda: snapshot_download(name, allow_patterns=list(_TINY_VAE_FILES)),
    )
