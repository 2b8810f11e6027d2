"""The parts that a model directory must have, and the settings that say which network they are.

A directory is data: only classes listed here are loaded, whatever `model_index.json` names, so no
code in it or named by it is ever run.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from online_aug.documents import DocumentError, read_object
from online_aug.errors import UserError

PARTS: Mapping[str, tuple[str, ...]] = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL", "AutoencoderTiny"),
    "text_encoder": ("CLIPTextModel",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "scheduler": (),  # any that schedule_settings.py knows
}
"""The parts of a Stable Diffusion 1.x or 2.x, and the classes that each may be of."""
INDEX = "model_index.json"
_UNUSED = {"safety_checker", "feature_extractor", "image_encoder"}
"""Parts of the same models that generation here does without."""
_FAMILY = "a Stable Diffusion 1.x or 2.x in diffusers' format"
_PLAIN = {
    "addition_embed_type": (None,),
    "class_embed_type": (None,),
    "num_class_embeds": (None,),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "attention_type": (None, "default"),
}
"""Settings of a U-Net by which other families differ: it wants more inputs than ours gives."""
_WHOLE = ("in_channels", "out_channels", "latent_channels", "sample_size", "cross_attention_dim")
FILE_SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".gguf")
"""Endings of the names of single files with a whole model."""


def check_parts(folder: Path) -> None:
    """Raise if a directory lacks a part, has parts of another family, or unusable settings.

    Raises:
        UserError: If so; names the family, the part, or the file and the key.
    """
    index = read_settings(folder / INDEX)
    family = index.get("_class_name")
    lacking = [name for name in PARTS if name not in index or not (folder / name).is_dir()]
    others = [
        name for name, value in index.items() if _is_part(value) and name not in {*PARTS, *_UNUSED}
    ]
    if others:
        raise UserError(
            f"generation.model must be {_FAMILY}, got {folder}, a {family} with {others[0]}, which "
            "cannot be run yet"
        )
    if lacking:
        raise UserError(
            f"generation.model must be {_FAMILY}, the {family or 'model'} in {folder} lacks "
            f"{', '.join(lacking)}"
        )
    for name, classes in PARTS.items():
        _check_class(folder, name, index[name], classes)
    _check_unet(folder)
    _check_whole(folder / "vae" / "config.json", read_settings(folder / "vae" / "config.json"))


def read_settings(path: Path, key: str = "generation.model") -> Mapping[str, Any]:
    """Read a JSON file of settings.

    Args:
        path: The file.
        key: Configuration key that named it, for errors.

    Raises:
        UserError: If it cannot be read or holds no JSON object.
    """
    try:
        return read_object(path)
    except DocumentError as error:
        raise UserError(f"{key} must have a readable {path}: {error}") from None


def class_of(place: Path, part: str) -> str:
    """Return the class of a part of the model in a directory.

    Raises:
        UserError: If it is none that may be loaded.
    """
    value = read_settings(place / INDEX).get(part)
    found = value[1] if isinstance(value, list) and len(value) == 2 else value
    if found not in PARTS[part]:
        raise UserError(
            f"generation.model must have a part {part} of class {' or '.join(PARTS[part])}, got "
            f"{found!r} in {place / INDEX}"
        )
    return str(found)


def is_single_file(name: str) -> bool:
    """Return whether a name is that of a file with a whole model rather than of a directory."""
    return name.lower().endswith(FILE_SUFFIXES) or Path(name).expanduser().is_file()


def single_file(key: str, name: str) -> UserError:
    """Return the error for a whole model in one file, with the way to a directory."""
    return UserError(
        f"{key} must be a directory in diffusers' format, got the single file {name!r}: convert it "
        "with diffusers, StableDiffusionPipeline.from_single_file(FILE).save_pretrained(DIR), and "
        "give DIR"
    )


def _is_part(value: Any) -> bool:
    return isinstance(value, list) and any(part is not None for part in value)


def _check_class(folder: Path, name: str, value: Any, classes: tuple[str, ...]) -> None:
    library = "transformers" if name in ("text_encoder", "tokenizer") else "diffusers"
    is_pair = isinstance(value, list) and len(value) == 2
    found = value[1] if is_pair and value[0] == library else None
    is_known = found in classes if classes else str(found).endswith("Scheduler")
    if not is_known:
        wanted = " or ".join(classes) or "a scheduler"
        raise UserError(
            f"generation.model must be {_FAMILY}, whose {name} is {wanted} of {library}, got "
            f"{value!r} in {folder / INDEX}"
        )


def _check_unet(folder: Path) -> None:
    path = folder / "unet" / "config.json"
    settings = read_settings(path)
    _check_whole(path, settings)
    for name, plain in _PLAIN.items():
        if settings.get(name) not in plain:
            raise UserError(
                f"generation.model must be {_FAMILY}, whose U-Net has no {name}, got "
                f"{settings[name]!r} in {path}"
            )


def _check_whole(path: Path, settings: Mapping[str, Any]) -> None:
    for name in _WHOLE:
        value = settings.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise UserError(
                f"generation.model must have a whole number as {name}, got {value!r} in {path}"
            )
