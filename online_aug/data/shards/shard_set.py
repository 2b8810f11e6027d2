"""A split whose images are in shards: read at their places, without the rest of the shard."""

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from online_aug.data.images import content_size, decode_image
from online_aug.data.shards.content import Images, shown
from online_aug.data.shards.index import ShardIndex
from online_aug.data.shards.index_file import Known
from online_aug.data.shards.open_shard import OpenShards
from online_aug.data.shards.readers.blocks import unpacked
from online_aug.errors import escaped
from online_aug.file_digests.digests import Digests
from online_aug.file_digests.names import Names

_OF_PROCESS = ("_opened", "names", "index")


@dataclass(frozen=True, kw_only=True, eq=False)
class ShardSet:
    """A split whose images are in tar, Parquet or Arrow files; each process opens them itself."""

    folder: Path
    shards: tuple[Known, ...]
    images: Images
    """Places, sizes and digests of the images of all shards, in order."""
    class_names: tuple[str, ...]
    labels: Int[np.ndarray, " n"]
    index: ShardIndex | None = None
    """The index that keeps what is found of the images; None keeps nothing."""

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    def __getstate__(self) -> dict[str, Any]:
        """Pickle what is known, and nothing that is open."""
        return {key: value for key, value in self.__dict__.items() if key not in _OF_PROCESS}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take what was pickled."""
        self.__dict__.update(state, index=None)

    def content(self, index: int) -> bytes:
        """Return the bytes of one image as the shard holds them.

        Raises:
            UserError: If the shard cannot be read, or has changed since it was indexed.
        """
        known = self.shards[self._shard_of(index)]
        shard = self._opened.of(self.folder / known.file.name, known.state)
        start, size = int(self.images["start"][index]), int(self.images["size"][index])
        if not len(known.content.blocks):
            return shard.read(start, size)
        return unpacked(shard.read, known.content, start, size)

    def load(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        """Decode one image.

        Raises:
            BadImageError: If it cannot be decoded; names the image and the shard.
            UserError: As `content`.
        """
        return decode_image(self.content(index), self.title(index))

    def size(self, index: int) -> tuple[int, int]:
        """Return height and width of one image, px; only its header is decoded.

        Raises:
            BadImageError: As `load`.
        """
        return content_size(self.content(index), self.title(index))

    def digest(self, index: int) -> str:
        """Return the digest of one image's bytes; nothing is read."""
        return bytes(self.images["digest"][index]).hex()

    def digests(self, indices: Int[np.ndarray, " n"]) -> Digests:
        """Return the digests of some images; nothing is read."""
        rows = self.images["digest"][indices].tobytes()
        return Digests(np.frombuffer(rows, np.uint8).reshape(len(indices), -1))

    def title(self, index: int) -> str:
        """Return words by which a person finds an image."""
        shard = self._shard_of(index)
        name = escaped(self.shards[shard].content.names[index - int(self._starts[shard])])
        return f"{name} of {shown(self.folder / self.shards[shard].file.name)}"

    def unchecked(self, level: int) -> Int[np.ndarray, " m"]:
        """Return the images that have not passed a check of this level."""
        return np.flatnonzero(self.images["checked"] < level)

    def note_checked(self, places: Int[np.ndarray, " m"], level: int) -> None:
        """Note that images named by `unchecked` have passed a check."""
        if self.index is not None and len(places):
            self.images["checked"][places] = level
            self.index.note_changes()

    def save(self) -> None:
        """Keep what is known of the images, if it can be kept."""
        if self.index is not None:
            self.index.save()

    @cached_property
    def names(self) -> Names:
        """Shard of each image and its name in it, as if shards were folders."""
        parts = []
        for known in self.shards:
            place = os.fsencode(f"{known.file.name}/")
            listed = known.content.names.content[:-1]
            parts += [place, listed.replace(b"\0", b"\0" + place), b"\0"] if listed else []
        return Names(b"".join(parts))

    @cached_property
    def _opened(self) -> OpenShards:
        return OpenShards()

    @cached_property
    def _starts(self) -> Int[np.ndarray, " shards"]:
        sizes = [len(known.content.images) for known in self.shards]
        return np.cumsum([0, *sizes])[:-1]

    def _shard_of(self, index: int) -> int:
        return int(np.searchsorted(self._starts, index, side="right")) - 1
