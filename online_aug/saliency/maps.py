"""Saliency maps: their range, their size, and how they follow their image.

Otsu's threshold (1979) of many maps at once, on their device.

Spectral residual (Hou and Zhang, CVPR 2007): saliency without a classifier or a gradient.

The saliency maps of a whole training set, under the version of what made them.

Names for all that decides a saliency map but the image.
"""

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

EPSILON = 1e-7
"""Added to the largest value, as pytorch_grad_cam does: a map without a peak is all zero."""


def scaled(maps: Float[Tensor, "b h w"]) -> Float[Tensor, "b h w"]:
    """Each map from 0 at its smallest value to 1 at its largest; a flat map is all 0."""
    lowest = maps - maps.amin((1, 2), keepdim=True)
    return lowest / (EPSILON + lowest.amax((1, 2), keepdim=True))


def upscaled(maps: Float[Tensor, "b h w"], size: tuple[int, int]) -> Float[Tensor, "b h2 w2"]:
    """Maps at the size of their images, px: bilinear, then from 0 to 1 again."""
    large = F.interpolate(maps.unsqueeze(1), size, mode="bilinear", align_corners=False)
    return scaled(large.squeeze(1))


def follow(
    maps: Float[Tensor, "b h w"], theta: Float[Tensor, "b 2 3"], size: tuple[int, int]
) -> Float[Tensor, "b h2 w2"]:
    """Maps of images that were cropped, flipped or otherwise moved, at a new size.

    The values stay what they were: a crop without a peak stays dark.

    Args:
        maps: Of the whole images.
        theta: From places in the moved image to places in the whole one, both in [-1, 1], as
            `transforms.warp` takes it. `[[-1, 0, 0], [0, 1, 0]]` is the horizontal flip,
            `[[w, 0, x], [0, h, y]]` the crop of these shares of the sides around the centre (x, y).
        size: Height and width of the result.
    """
    grid = F.affine_grid(theta, [len(maps), 1, *size], align_corners=False)
    moved = F.grid_sample(
        maps.unsqueeze(1), grid, mode="bilinear", padding_mode="border", align_corners=False
    )
    return moved.squeeze(1)


BINS = 256


def otsu_masks(maps: Float[Tensor, "b h w"]) -> Bool[Tensor, "b h w"]:
    """Where each map is above its threshold; nowhere in a flat map."""
    return maps.double() > otsu_thresholds(maps).view(-1, 1, 1)


def otsu_thresholds(maps: Float[Tensor, "b h w"]) -> Float[Tensor, " b"]:
    """The value that splits each map into the two classes of largest variance between them.

    Equal to `skimage.filters.threshold_otsu` of each map in double precision: 256 bins over the
    map's own range, the threshold at the centre of a bin, a flat map's threshold its value.
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
    places = torch.arange(BINS + 1, dtype=values.dtype, device=values.device)
    edges = places * ((highest - lowest) / BINS) + lowest
    edges[:, -1:] = highest
    return edges


def _histogram(
    values: Float[Tensor, "b n"], edges: Float[Tensor, "b 257"]
) -> Float[Tensor, "b 256"]:
    inner = edges[:, 1:-1].contiguous()
    bins: Int[Tensor, "b n"] = torch.searchsorted(inner, values.contiguous(), right=True)
    counts = torch.zeros(len(values), BINS, dtype=values.dtype, device=values.device)
    return counts.scatter_add_(1, bins, torch.ones_like(values))


def _cumsum_from_right(values: Float[Tensor, "b n"]) -> Float[Tensor, "b n"]:
    return values.flip(1).cumsum(1).flip(1)


SIDE_PX = 64
"""Side at which the spectrum is taken; the paper's choice, objects of this scale stand out."""
SIGMA_PX = 2.5
"""Of the last blur, from the authors' published code, as its window of 10 px (here 11)."""
WINDOW_PX = 11
LUMA = (0.299, 0.587, 0.114)


def spectral_residual(images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b 64 64"]:
    """Maps from 0 to 1 of what the smooth part of each image's log spectrum does not predict."""
    luma = torch.tensor(LUMA, device=images.device).view(1, 3, 1, 1)
    grey = (images.float() / 255 * luma).sum(1, keepdim=True)
    small = F.interpolate(grey, (SIDE_PX, SIDE_PX), mode="bilinear", antialias=True)
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
    places = torch.arange(WINDOW_PX, device=device) - WINDOW_PX // 2
    weights = torch.exp(-(places**2) / (2 * SIGMA_PX**2))
    return weights / weights.sum()


SHARE_SIDE = 32
"""Side of the grid on which shares of the image are counted."""
_SIDES = np.dtype("<u2")
_VALUES = np.dtype("<f2")


@dataclass(frozen=True, eq=False)
class SaliencyTable:
    """One map for each training image, all of one size."""

    version: str
    digests: tuple[str, ...]
    """Of the images, each once, sorted: the order does not depend on that of the data set."""
    maps: Float[np.ndarray, "n u v"]
    """From 0 to 1, float32."""

    @classmethod
    def from_maps(cls, version: str, maps: Mapping[str, np.ndarray]) -> "SaliencyTable":
        """The table of some maps by image digest."""
        digests = tuple(sorted(maps))
        return cls(version, digests, np.stack([maps[d] for d in digests]).astype(np.float32))

    def __len__(self) -> int:
        """Images."""
        return len(self.digests)

    def place(self, digest: str) -> int:
        """Where an image is in the table.

        Raises:
            ValueError: If it is not.
        """
        if digest not in self._places:
            raise ValueError(f"source must be in saliency table {self.version}, got {digest}")
        return self._places[digest]

    def nearest(self, place: int, candidates: Int[np.ndarray, " c"]) -> int:
        """The candidate whose map differs least, in the Euclidean norm; the first of several."""
        differences = self._rows[candidates] - self._rows[place]
        return int(candidates[np.argmin(np.einsum("cn,cn->c", differences, differences))])

    def source_share(self, place: int) -> float:
        """Share of the image that its mask covers."""
        return float(self._masks[place].mean())

    def union_share(self, one: int, other: int) -> float:
        """Share of the image that two masks cover together."""
        return float((self._masks[one] | self._masks[other]).mean())

    def large_maps(self, digests: Sequence[str], side: int) -> Float[Tensor, "b s s"]:
        """Maps at the size of a generated image, px."""
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
        masks = [otsu_masks(upscaled(part, (SHARE_SIDE, SHARE_SIDE))) for part in maps]
        return torch.cat(masks).numpy()


def encode_map(values: Float[np.ndarray, "u v"]) -> bytes:
    """A map as the cache keeps it: height and width, then half-precision values, row by row."""
    return np.array(values.shape, _SIDES).tobytes() + values.astype(_VALUES).tobytes()


def decode_map(content: bytes) -> Float[np.ndarray, "u v"]:
    """The map that `encode_map` wrote."""
    height, width = np.frombuffer(content, _SIDES, count=2)
    values = np.frombuffer(content, _VALUES, offset=2 * _SIDES.itemsize)
    return values.reshape(height, width).astype(np.float32)


def read_maps(
    get: Callable[[str, str], bytes | None], version: str, digests: Sequence[str]
) -> dict[str, Float[np.ndarray, "u v"]]:
    """Those maps of some images that `get` (version, digest) has."""
    found = {digest: get(version, digest) for digest in digests}
    return {digest: decode_map(content) for digest, content in found.items() if content is not None}


def spectral_version(side: int) -> str:
    """The version of maps made without a teacher, of images of this side."""
    return f"spectral_residual-{side}"


def file_version(weights: Path, name: str, side: int) -> str:
    """The version of maps by a model of this timm name with the weights in a file.

    Raises:
        OSError: If the file cannot be read.
    """
    return f"grad_cam-{name}-{side}-{file_digest(weights)}"


def file_digest(path: Path) -> str:
    """BLAKE2b of a file's content, 32 hexadecimal digits.

    Raises:
        OSError: If the file cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def weights_version(classifier: nn.Module, name: str, side: int) -> str:
    """The version of maps by a model of this timm name as it is now."""
    digest = hashlib.blake2b(digest_size=16)
    for key, value in sorted(classifier.state_dict().items()):
        digest.update(key.encode() + b"\0")
        digest.update(value.detach().cpu().float().contiguous().numpy().tobytes())
    return f"grad_cam-{name}-{side}-{digest.hexdigest()}"
