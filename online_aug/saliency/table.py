"""The foregrounds of all training images: what methods know of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from online_aug.saliency.maps import upscaled
from online_aug.saliency.masks import otsu_masks, resized_masks

_SHARE_SIDE = 32
"""Side of the grid on which the covered share of an image is counted."""
_PART = 1024
"""Images whose masks are made at a time."""
_RECENT = 4096
"""Masks that are kept, packed, for the next time they are asked for."""


@dataclass(frozen=True, eq=False)
class SaliencyTable:
    """The maps of all training images, all of one size and one version, and perhaps their masks."""

    version: str
    digests: tuple[str, ...]
    """Digest of each image, sorted, so that the order does not depend on that of the data set."""
    maps: Float[np.ndarray, "n u v"]
    """Values in [0, 1], float32."""
    packed_masks: UInt8[np.ndarray, "n s p"] | None = None
    """The masks, eight pixels of a row a byte; None cuts the maps at Otsu's threshold."""

    @classmethod
    def from_maps(
        cls,
        version: str,
        maps: Mapping[str, np.ndarray],
        masks: Mapping[str, Bool[np.ndarray, "s s"]] | None = None,
    ) -> "SaliencyTable":
        """Build the table of some maps, given by image digest.

        Args:
            version: Names the maps, and the masks if there are some.
            maps: Map of each image.
            masks: Mask of each image; None takes Otsu's of its map.
        """
        digests = tuple(sorted(maps))
        stacked = np.stack([maps[d] for d in digests]).astype(np.float32)
        if masks is None:
            return cls(version, digests, stacked)
        packed = np.stack([np.packbits(masks[d], axis=1) for d in digests])
        return cls(version, digests, stacked, packed)

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
        """Return the candidate whose foreground is nearest to an image's, the first of equals.

        The Euclidean distance of the maps counts, or of the masks if the table has some: maps that
        are soft say where an object is, not where it ends.
        """
        if self.packed_masks is not None:
            others = self._small_masks[candidates] ^ self._small_masks[place]
            return int(candidates[np.argmin(others.sum((1, 2)))])
        differences = self._rows[candidates] - self._rows[place]
        return int(candidates[np.argmin(np.einsum("cn,cn->c", differences, differences))])

    def masks(self, digests: Sequence[str], side: int) -> Bool[np.ndarray, "b s s"]:
        """Return the foregrounds of some images as masks, a square of `side` px each."""
        packed = [self._recent_mask(self.place(digest), side) for digest in digests]
        return np.unpackbits(np.stack(packed), axis=2, count=side).view(np.bool_)

    def _recent_mask(self, place: int, side: int) -> UInt8[np.ndarray, "s p"]:
        recent, key = self._recent, (place, side)
        packed = recent.pop(key, None)
        if packed is None:
            packed = np.packbits(self._masks_at(np.array([place]), side)[0], axis=1)
        recent[key] = packed  # the latest
        if len(recent) > _RECENT:
            del recent[next(iter(recent))]
        return packed

    def source_share(self, place: int) -> float:
        """Return the share of an image that its mask covers, [0, 1]."""
        return float(self._small_masks[place].mean())

    def union_share(self, one: int, other: int) -> float:
        """Return the share of an image that the union of two masks covers, [0, 1]."""
        return float((self._small_masks[one] | self._small_masks[other]).mean())

    def large_maps(self, digests: Sequence[str], side: int) -> Float[Tensor, "b s s"]:
        """Return maps enlarged to a square of `side` px."""
        return self._large([self.place(digest) for digest in digests], side)

    def _large(
        self, places: Sequence[int] | Int[np.ndarray, " b"], side: int
    ) -> Float[Tensor, "b s s"]:
        return upscaled(torch.from_numpy(self.maps[places]), (side, side))

    def _masks_at(self, places: Int[np.ndarray, " b"], side: int) -> Bool[np.ndarray, "b s s"]:
        if self.packed_masks is None:
            return np.asarray(otsu_masks(self._large(places, side)).numpy())
        packed = self.packed_masks[places]
        whole = np.unpackbits(packed, axis=2, count=packed.shape[1]).astype(np.bool_)
        return resized_masks(whole, side)

    @cached_property
    def _recent(self) -> dict[tuple[int, int], UInt8[np.ndarray, "s p"]]:
        return {}

    @cached_property
    def _places(self) -> dict[str, int]:
        return {digest: place for place, digest in enumerate(self.digests)}

    @cached_property
    def _rows(self) -> Float[np.ndarray, "n uv"]:
        return self.maps.reshape(len(self.maps), -1)

    @cached_property
    def _small_masks(self) -> Bool[np.ndarray, "n s s"]:
        parts = np.split(np.arange(len(self)), range(_PART, len(self), _PART))
        return np.concatenate([self._masks_at(part, _SHARE_SIDE) for part in parts])
