"""Which image generator this is, told without loading it: the fingerprint in every request."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path

from online_aug.config.generation import FinetuneConfig, GenerationConfig
from online_aug.diffusion.directory import fetch
from online_aug.errors import UserError
from online_aug.request import PipelineKind

_ASSETS = Path(str(files("online_aug"))) / "assets"
EMBEDDED: Mapping[PipelineKind, Path] = {
    "image_to_image": _ASSETS / "tiny_stable_diffusion",
    "instruct": _ASSETS / "tiny_instruct_pix2pix",
}
_CONTENT = {".safetensors", ".json", ".txt", ".bin"}
_KINDS: Mapping[PipelineKind, str] = {
    "image_to_image": "a text-to-image model",
    "instruct": "an InstructPix2Pix",
}
_METHODS: Mapping[PipelineKind, str] = {
    "image_to_image": "this method",
    "instruct": "method.name diffusemix",
}
_DECIDES_NOTHING = {
    *("enabled", "path", "gradient_checkpointing", "checkpoint_steps", "validation_steps")
}
_FIRST_KEYS = {"steps", "batch_size", "lr", "token_lr", "schedule", "rank", "seed"}
"""Later keys count where they are set, so that older results keep their folders."""
ENGINE_VERSION = 2
"""Raised when the engine starts to make other pixels of the same request, be it by rounding."""
_PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")


def locate(config: GenerationConfig, kind: PipelineKind) -> Path:
    """The directory of the configured model, downloaded from the hub where it is a hub name.

    Args:
        config: Name and revision.
        kind: What the method needs; `embedded` is a model of that kind.

    Raises:
        UserError: If there is no such model, or it is of another kind.
    """
    if config.model == "embedded":
        return EMBEDDED[kind]
    folder = Path(config.model).expanduser()
    if not folder.is_dir():
        folder = _download(config.model, config.revision, kind)
    if not (folder / "model_index.json").is_file():
        raise UserError(
            f"generation.model must be a diffusers model directory (with model_index.json), "
            f"got {config.model!r}"
        )
    _check_parts(folder)
    _check_kind(folder, kind)
    return folder


def kind_of(folder: Path) -> PipelineKind:
    """What a model directory can do; InstructPix2Pix reads the source beside the noisy latents.

    Raises:
        UserError: If its U-Net takes something else, such as the mask of an inpainting model.
    """
    try:
        taken = json.loads((folder / "unet" / "config.json").read_text())["in_channels"]
        latent = json.loads((folder / "vae" / "config.json").read_text())["latent_channels"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"generation.model {folder} cannot be loaded: {error!r}") from None
    if taken == latent:
        return "image_to_image"
    if taken == 2 * latent:
        return "instruct"
    raise UserError(
        f"generation.model must be {' or '.join(_KINDS.values())}, got {folder}, "
        f"whose U-Net takes {taken} channels for {latent} of the latents"
    )


def check_attention(name: str, device: str) -> None:
    """Refuse attention kernels that no model runs on this device.

    Raises:
        UserError: If xformers is asked for on a CPU.
    """
    if name == "xformers" and device == "cpu":
        raise UserError("generation.attention must be auto or sdpa on cpu, got 'xformers'")


def choose_dtype(name: str, device: str) -> str:
    """The number format that `auto` stands for on this device; any other name as it is."""
    if name != "auto":
        return name
    return "float32" if device == "cpu" else "float16"


def digest_folder(folder: Path) -> str:
    """BLAKE2b over names and contents of all weights and settings below a folder, hexadecimal."""
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(folder.rglob("*")):
        if path.suffix in _CONTENT and path.is_file():
            digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "blake2b").digest())
    return digest.hexdigest()


def finetuned_folder(
    config: FinetuneConfig,
    model_digest: str,
    examples: Sequence[tuple[str, int]],
    settings: Sequence[object],
) -> Path:
    """Where the result for these images and settings is kept: one folder a fingerprint.

    Args:
        config: What decides the training, and the folder of all results.
        model_digest: Of the base model.
        examples: Digest and label of every training image, in any order.
        settings: Whatever else decides the result: resolution, prompts, flips.
    """
    decides = config.model_dump(mode="json", exclude=_DECIDES_NOTHING)
    defaults = FinetuneConfig().model_dump(mode="json")
    decides = {k: v for k, v in decides.items() if k in _FIRST_KEYS or v != defaults[k]}
    digest = hashlib.blake2b(digest_size=12)
    digest.update(repr([model_digest, sorted(decides.items()), list(settings)]).encode())
    digest.update(repr(sorted(examples)).encode())
    return config.path / digest.hexdigest()


def fingerprint(
    model_digest: str, adapters_digest: str | None, dtype: str, vae_digest: str | None = None
) -> str:
    """Digest of base weights, adapters, number format, engine and another's autoencoder.

    A model with its own autoencoder has the fingerprint that it had before one could be replaced.
    """
    text = f"{model_digest}/{adapters_digest or 'none'}/{dtype}/{ENGINE_VERSION}"
    if vae_digest is not None:
        text += f"/{vae_digest}"
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _check_parts(folder: Path) -> None:
    try:
        index = json.loads((folder / "model_index.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"generation.model {folder} cannot be read: {error}") from None
    lacking = [name for name in _PARTS if name not in index or not (folder / name).is_dir()]
    if lacking:
        raise UserError(
            f"generation.model must be a Stable Diffusion 1.x or 2.x in diffusers' format, "
            f"{folder} lacks {', '.join(lacking)}"
        )


def _check_kind(folder: Path, kind: PipelineKind) -> None:
    if (found := kind_of(folder)) != kind:
        raise UserError(
            f"generation.model must be {_KINDS[kind]} for {_METHODS[kind]}, got {folder}, "
            f"which is {_KINDS[found]}"
        )


def _download(name: str, revision: str | None, kind: PipelineKind) -> Path:
    import diffusers  # slow to import, rarely needed

    pipeline = diffusers.StableDiffusionImg2ImgPipeline
    if kind == "instruct":
        pipeline = diffusers.StableDiffusionInstructPix2PixPipeline

    def download() -> str:
        says = diffusers.logging.get_verbosity()
        diffusers.logging.set_verbosity_error()  # without a network it is said once, by us
        try:
            return str(
                pipeline.download(
                    name, revision=revision, safety_checker=None, requires_safety_checker=False
                )
            )
        finally:
            diffusers.logging.set_verbosity(says)

    return fetch("generation.model", "'embedded', a diffusers model directory", name, download)
