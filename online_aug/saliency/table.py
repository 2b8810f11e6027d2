"""The saliency maps of a whole training set, under the version of what made them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from online_aug.saliency.maps import upscaled
from online_aug.saliency.otsu import otsu_masks

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
