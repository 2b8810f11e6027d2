"""Weight files, read without loading the model: shapes, whether they are whole, digests.

The digests of all that decides a generator's pixels make its fingerprint, a part of every request.
"""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from online_aug.diffusion.parts import INDEX, PARTS
from online_aug.documents import DocumentError, read_object
from online_aug.errors import UserError, one_line

Shape = tuple[int, ...]
ENGINE_VERSION = 2
"""To be raised when the engine makes other pixels of the same request, be it only by rounding."""

_WEIGHTED_PARTS = ("unet", "vae", "text_encoder")
VARIANTS = ("fp16", "bf16")
"""Number formats that files are named after if a directory holds no others."""
_STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
_SETTINGS = {".json", ".txt"}
_DECIDING_SUFFIXES = {".safetensors", ".bin", *_SETTINGS}
_KEY = "generation.model"
_UNET_KEY = "generation.unet"
_TENSOR_FILES = (".safetensors", ".bin", ".pt")


def check_weights(model: Path, vae: Path | None = None, unet: Path | None = None) -> None:
    """Raise if weights are missing, cut short or something else; loads nothing.

    Args:
        model: Directory of the model.
        vae: Directory of the autoencoder that replaces the model's own.
        unet: File of the weights that replace those of the U-Net.

    Raises:
        UserError: If a file is not whole; the error names it.
    """
    for part in _WEIGHTED_PARTS:
        tensor_shapes(model / part)
    if vae is not None:
        tensor_shapes(vae, "generation.vae")
    if unet is not None:
        _check_fit(_shapes_of_file(unet, _UNET_KEY), unet, model)


def _check_fit(found: Mapping[str, Shape], path: Path, model: Path) -> None:
    wanted = tensor_shapes(model / "unet")
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise UserError(
                f"{_UNET_KEY} must hold the weights of the U-Net of {model} by diffusers' names, "
                f"got {name} with shape {found.get(name, 'none')} in the place of "
                f"{wanted.get(name, 'none')} in {path}"
            )


def locate_unet(path: Path | None) -> Path | None:
    """Return the file of the weights that replace those of the U-Net; None if there are none.

    Raises:
        UserError: If there is no such file.
    """
    if path is None:
        return None
    path = path.expanduser()
    if not path.is_file() or path.suffix not in _TENSOR_FILES:
        raise UserError(
            f"{_UNET_KEY} must be a file of tensors ({', '.join(_TENSOR_FILES)}), got {path}, "
            f"which is {'another file' if path.is_file() else 'missing'}"
        )
    return path


def read_unet(path: Path, model: Path) -> dict[str, Any]:
    """Read the weights that replace those of a model's U-Net.

    Raises:
        UserError: If they are not those of such a network.
    """
    tensors = read_tensors(path, _UNET_KEY)
    _check_fit({name: tuple(tensor.shape) for name, tensor in tensors.items()}, path, model)
    return tensors


def tensor_shapes(part: Path, key: str = _KEY) -> dict[str, Shape]:
    """Read the shape of every tensor, by name, from the files that diffusers would load.

    Args:
        part: Directory of one part of a model, such as its U-Net.
        key: Configuration key that named it, for errors.

    Raises:
        UserError: If there are no weights or a file is not whole.
    """
    found: dict[str, Shape] = {}
    for path in _weight_files(part, key):
        found.update(_shapes_of_file(path, key))
    return found


def _shapes_of_file(path: Path, key: str) -> dict[str, Shape]:
    try:
        return _shapes_in(path)
    except Exception as error:  # whatever a damaged file makes torch or safetensors raise
        raise UserError(
            f"{key} must have whole weight files, got {path} "
            f"({one_line(error)}): fetch or copy it again"
        ) from error


def _weight_files(part: Path, key: str) -> list[Path]:
    for variant in ("", *(f".{name}" for name in VARIANTS)):
        for suffix in (".safetensors", ".bin"):
            for stem in _STEMS:
                index = part / f"{stem}{suffix}.index{variant}.json"
                if index.is_file():
                    return _shards(index, key)
                if (part / f"{stem}{variant}{suffix}").is_file():
                    return [part / f"{stem}{variant}{suffix}"]
    raise UserError(f"{key} must have weights in {part}, got neither .safetensors nor .bin")


def variant_of(part: Path, key: str = _KEY) -> str | None:
    """Return the variant in which alone the weights of a part are there; None for plain names.

    Args:
        part: Directory of one part of a model.
        key: Configuration key that named it, for errors.

    Raises:
        UserError: If there are no weights.
    """
    first = _weight_files(part, key)[0].name
    return next((name for name in VARIANTS if f".{name}." in first or f".{name}-" in first), None)


def _shards(index: Path, key: str) -> list[Path]:
    try:
        found = read_object(index).get("weight_map")
        names = set(found.values()) if isinstance(found, dict) else set()
        if not names or not all(
            isinstance(each, str) and each == Path(each).name for each in names
        ):
            raise DocumentError("weight_map must give each tensor the name of a file beside it")
    except (DocumentError, TypeError) as error:
        raise UserError(f"{key} must have a whole {index}: {error}") from None
    return [index.parent / name for name in sorted(names)]


def _shapes_in(path: Path) -> dict[str, Shape]:
    if path.suffix in (".bin", ".pt"):
        tensors = torch.load(path, map_location="meta", weights_only=True)
        return {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    with safe_open(path, framework="pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def read_tensors(path: Path, key: str) -> dict[str, Any]:
    """Read a file of tensors, of which nothing is executed.

    Args:
        path: A file in safetensors' or PyTorch's format.
        key: Configuration key that named it, for errors.

    Raises:
        UserError: If it holds anything else or is damaged.
    """
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # whatever a damaged or hostile file makes torch raise
        reason = one_line(error).partition(". ")[0]  # PyTorch goes on with what not to do
        raise UserError(f"{key} must hold tensors only, got {path} ({reason})") from error


def digest_folder(folder: Path) -> str:
    """Return the BLAKE2b digest of names and contents of all weights and settings in a folder."""
    found = (path for path in folder.rglob("*") if path.suffix in _DECIDING_SUFFIXES)
    return digest_files(folder, (path for path in found if path.is_file()))


def digest_model(model: Path, unet: Path | None = None) -> str:
    """Return the digest of a model's settings and of the weights that are loaded.

    Files beside them that nothing reads, such as `*.non_ema.*`, do not count.

    Args:
        model: Directory of the model.
        unet: File of the weights that replace those of its U-Net.

    Raises:
        UserError: If a part has no weights.
    """
    parts = [model / name for name in PARTS]
    settings = (path for part in parts for path in part.glob("*") if path.suffix in _SETTINGS)
    weights = (path for name in _WEIGHTED_PARTS for path in _weight_files(model / name, _KEY))
    read = {path for path in settings if ".index." not in path.name}
    own = digest_files(model, {model / INDEX, *read, *weights})
    if unet is None:
        return own
    with unet.open("rb") as file:
        replaced = hashlib.file_digest(file, "blake2b").hexdigest()
    return hashlib.blake2b(f"{own}/{replaced}".encode(), digest_size=16).hexdigest()


def digest_files(folder: Path, files: Iterable[Path]) -> str:
    """Return the BLAKE2b digest of the names and contents of some files in a folder."""
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(files):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "blake2b").digest())
    return digest.hexdigest()


def fingerprint(
    model_digest: str,
    adapters_digest: str | None,
    dtype: str,
    vae_digest: str | None = None,
    few_steps_digest: str | None = None,
) -> str:
    """Return the digest of weights, adapters, number format, engine and what else is added.

    Without a replaced autoencoder and an adapter for few steps the digest is the one from before
    there were any.
    """
    text = f"{model_digest}/{adapters_digest or 'none'}/{dtype}/{ENGINE_VERSION}"
    if vae_digest is not None:
        text += f"/{vae_digest}"
    if few_steps_digest is not None:
        text += f"/few steps {few_steps_digest}"
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
