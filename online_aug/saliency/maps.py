"""Saliency maps: made without a classifier, cut to masks, kept in a table, named by a version."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn

_EPSILON = 1e-7
"""Added to the largest value, as in pytorch_grad_cam: a map without a peak is all zero."""
_SPECTRUM_PX = 64
"""Side at which the spectrum is taken; the paper's choice, at which objects stand out."""
_SIGMA_PX, _WINDOW_PX = 2.5, 11
"""The last blur, from the authors' code, whose window is 10 px."""
_LUMA = (0.299, 0.587, 0.114)
_BINS = 256
_SHARE_SIDE = 32
"""Side of the grid on which the covered share of an image is counted."""
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


def otsu_masks(maps: Float[Tensor, "b h w"]) -> Bool[Tensor, "b h w"]:
    """Return where each map is above its Otsu threshold; a flat map gives an empty mask."""
    return maps.double() > otsu_thresholds(maps).view(-1, 1, 1)


def otsu_thresholds(maps: Float[Tensor, "b h w"]) -> Float[Tensor, " b"]:
    """Return the Otsu threshold (1979) of each map, which maximises the variance between classes.

    Equal to `skimage.filters.threshold_otsu` of each map in double precision: 256 bins over the
    map's range, the threshold at the centre of a bin. The threshold of a flat map is its value.
    """
    values = maps.double().flatten(1)
    edges = _edges(values)
    counts = _histogram(values, edges)
    centres = (edges[:, :-1] + edges[:, 1:]) / 2
    below, above = counts.cumsum(1), _cumsum_from_right(counts)
    mean_below = (counts * centres).cumsum(1) / below
    mean_above = _cumsum_from_right(counts * centres) / above
    between = below[:, :-1] * above[:, 1:] * (mean_below[:, :-1] - mean_above[:, 1:]) ** 2
    best = centres.gather(1, between.argmax(1, keepdim=True)).squeeze(1)
    is_flat = values.amin(1) == values.amax(1)
    return torch.where(is_flat, values[:, 0], best)


def _edges(values: Float[Tensor, "b n"]) -> Float[Tensor, "b 257"]:
    lowest, highest = values.amin(1, keepdim=True), values.amax(1, keepdim=True)
    places = torch.arange(_BINS + 1, dtype=values.dtype, device=values.device)
    edges = places * ((highest - lowest) / _BINS) + lowest
    edges[:, -1:] = highest
    return edges


def _histogram(
    values: Float[Tensor, "b n"], edges: Float[Tensor, "b 257"]
) -> Float[Tensor, "b 256"]:
    inner = edges[:, 1:-1].contiguous()
    bins: Int[Tensor, "b n"] = torch.searchsorted(inner, values.contiguous(), right=True)
    counts = torch.zeros(len(values), _BINS, dtype=values.dtype, device=values.device)
    return counts.scatter_add_(1, bins, torch.ones_like(values))


def _cumsum_from_right(values: Float[Tensor, "b n"]) -> Float[Tensor, "b n"]:
    return values.flip(1).cumsum(1).flip(1)


@dataclass(frozen=True, eq=False)
class SaliencyTable:
    """The saliency maps of all training images, all of one size and one version."""

    version: str
    digests: tuple[str, ...]
    """Digest of each image, sorted, so that the order does not depend on that of the data set."""
    maps: Float[np.ndarray, "n u v"]
    """Values in [0, 1], float32."""

    @classmethod
    def from_maps(cls, version: str, maps: Mapping[str, np.ndarray]) -> "SaliencyTable":
        """Build the table of some maps, given by image digest."""
        digests = tuple(sorted(maps))
        return cls(version, digests, np.stack([maps[d] for d in digests]).astype(np.float32))

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.digests)

    def place(self, digest: str) -> int:
        """Return the index of an image in the table.

        Raises:
            ValueError: If it is not in the table.
        """
        if digest not in self._places:
            raise ValueError(f"source must be in saliency table {self.version}, got {digest}")
        return self._places[digest]

    def nearest(self, place: int, candidates: Int[np.ndarray, " c"]) -> int:
        """Return the candidate whose map is nearest in the Euclidean norm, the first of equals."""
        differences = self._rows[candidates] - self._rows[place]
        return int(candidates[np.argmin(np.einsum("cn,cn->c", differences, differences))])

    def source_share(self, place: int) -> float:
        """Return the share of an image that its mask covers, [0, 1]."""
        return float(self._masks[place].mean())

    def union_share(self, one: int, other: int) -> float:
        """Return the share of an image that the union of two masks covers, [0, 1]."""
        return float((self._masks[one] | self._masks[other]).mean())

    def large_maps(self, digests: Sequence[str], side: int) -> Float[Tensor, "b s s"]:
        """Return maps enlarged to a square of `side` px."""
        places = [self.place(digest) for digest in digests]
        return upscaled(torch.from_numpy(self.maps[places]), (side, side))

    @cached_property
    def _places(self) -> dict[str, int]:
        return {digest: place for place, digest in enumerate(self.digests)}

    @cached_property
    def _rows(self) -> Float[np.ndarray, "n uv"]:
        return self.maps.reshape(len(self.maps), -1)

    @cached_property
    def _masks(self) -> Bool[np.ndarray, "n s s"]:
        maps = torch.from_numpy(self.maps).split(1024)
        masks = [otsu_masks(upscaled(part, (_SHARE_SIDE, _SHARE_SIDE))) for part in maps]
        return torch.cat(masks).numpy()


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
