"""Saliency maps: made without a classifier, enlarged, encoded for the cache, named by a version."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

_EPSILON = 1e-7
"""Added to the largest value, as in pytorch_grad_cam: a map without a peak is all zero."""
_SPECTRUM_PX = 64
"""Side at which the spectrum is taken; the paper's choice, at which objects stand out."""
_SIGMA_PX, _WINDOW_PX = 2.5, 11
"""The last blur, from the authors' code, whose window is 10 px."""
_LUMA = (0.299, 0.587, 0.114)
_SIDES, _VALUES = np.dtype("<u2"), np.dtype("<f2")


def scaled(maps: Float[Tensor, "b h w"]) -> Float[Tensor, "b h w"]:
    """Scale each map to [0, 1], from its smallest to its largest value; a flat map becomes 0."""
    lowest = maps - maps.amin((1, 2), keepdim=True)
    return lowest / (_EPSILON + lowest.amax((1, 2), keepdim=True))


def upscaled(maps: Float[Tensor, "b h w"], size: tuple[int, int]) -> Float[Tensor, "b h2 w2"]:
    """Enlarge maps to `size` (height, width in px) by bilinear interpolation, scaled to [0, 1]."""
    large = F.interpolate(maps.unsqueeze(1), size, mode="bilinear", align_corners=False)
    return scaled(large.squeeze(1))


def spectral_residual(images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b 64 64"]:
    """Return saliency maps in [0, 1] by the spectral residual (Hou and Zhang, CVPR 2007).

    Salient is what the smooth part of an image's log spectrum does not predict. No classifier and
    no gradient is needed.
    """
    luma = torch.tensor(_LUMA, device=images.device).view(1, 3, 1, 1)
    grey = (images.float() / 255 * luma).sum(1, keepdim=True)
    small = F.interpolate(grey, (_SPECTRUM_PX, _SPECTRUM_PX), mode="bilinear", antialias=True)
    spectrum = torch.fft.fft2(small)
    amplitude = torch.log(spectrum.abs().clamp(min=1e-8))
    residual = amplitude - _blurred(amplitude, torch.full((3,), 1 / 3, device=images.device))
    back = torch.fft.ifft2(torch.polar(residual.exp(), spectrum.angle()))
    return scaled(_blurred(back.abs() ** 2, _gaussian(images.device)).squeeze(1))


def _blurred(maps: Float[Tensor, "b 1 h w"], kernel: Float[Tensor, " k"]) -> Tensor:
    margin = len(kernel) // 2
    padded = F.pad(maps, (margin,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1))


def _gaussian(device: torch.device) -> Float[Tensor, " k"]:
    places = torch.arange(_WINDOW_PX, device=device) - _WINDOW_PX // 2
    weights = torch.exp(-(places**2) / (2 * _SIGMA_PX**2))
    return weights / weights.sum()


def encode_map(values: Float[np.ndarray, "u v"]) -> bytes:
    """Encode a map for the cache: height and width, then half-precision values row by row."""
    return np.array(values.shape, _SIDES).tobytes() + values.astype(_VALUES).tobytes()


def decode_map(content: bytes) -> Float[np.ndarray, "u v"]:
    """Decode what `encode_map` returned."""
    height, width = np.frombuffer(content, _SIDES, count=2)
    values = np.frombuffer(content, _VALUES, offset=2 * _SIDES.itemsize)
    return values.reshape(height, width).astype(np.float32)


def read_maps(
    get: Callable[[str, str], bytes | None], version: str, digests: Sequence[str]
) -> dict[str, Float[np.ndarray, "u v"]]:
    """Read the maps of some images, as far as `get(version, digest)` has them."""
    found = {digest: get(version, digest) for digest in digests}
    return {digest: decode_map(content) for digest, content in found.items() if content is not None}


def spectral_version(side: int) -> str:
    """Name the maps that the spectral residual makes of images of this side, px."""
    return f"spectral_residual-{side}"


def file_version(weights: Path, name: str, side: int) -> str:
    """Name the Grad-CAM maps of a timm model with the weights in a file, at this side in px.

    Raises:
        OSError: If the file cannot be read.
    """
    return f"grad_cam-{name}-{side}-{file_digest(weights)}"


def file_digest(path: Path) -> str:
    """Return the BLAKE2b digest of a file's content, 32 hexadecimal digits.

    Raises:
        OSError: If the file cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def weights_version(classifier: nn.Module, name: str, side: int) -> str:
    """Name the Grad-CAM maps of a timm model with its present weights, at this side in px."""
    digest = hashlib.blake2b(digest_size=16)
    for key, value in sorted(classifier.state_dict().items()):
        digest.update(key.encode() + b"\0")
        digest.update(value.detach().cpu().float().contiguous().numpy().tobytes())
    return f"grad_cam-{name}-{side}-{digest.hexdigest()}"
