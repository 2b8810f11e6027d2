"""Labelled images by index: the protocol, image folders, and parts of other sets."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
from jaxtyping import Int, UInt8

from cache import content_digest
from online_aug.dataloader.images import decode_image, read_bytes


class ImageSet(Protocol):
    """One split of labelled images; picklable, cheap, decodes nothing until `load`."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names by label; the same for all splits of a data set."""

    @property
    def labels(self) -> Int[np.ndarray, " n"]:
        """Class of each image, int64."""

    def __len__(self) -> int:
        """Number of images."""

    def load(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        """Pixels of one image.

        Raises:
            BadImageError: If it cannot be read.
        """

    def digest(self, index: int) -> str:
        """Digest of one image's content, hexadecimal: what a request names its source by."""


@dataclass(frozen=True, eq=False)
class Groups:
    """A division of a set's images beside their classes, such as class and background together."""

    names: tuple[str, ...]
    numbers: Int[np.ndarray, " n"]
    """Group of each image: a place in `names`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class FolderSet:
    """Images in files."""

    root: Path
    files: tuple[str, ...]
    """Relative to `root`."""
    class_names: tuple[str, ...]
    labels: Int[np.ndarray, " n"]
    groups: Groups | None = None
    """Where the data set comes with them; `groups_of` finds them in parts of this set too."""

    def __len__(self) -> int:
        """Number of images."""
        return len(self.files)

    def path(self, index: int) -> Path:
        """File of one image."""
        return self.root / self.files[index]

    def load(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        """Pixels of one image.

        Raises:
            BadImageError: If it cannot be read; names the file.
        """
        return decode_image(read_bytes(self.path(index)), str(self.path(index)))

    def digest(self, index: int) -> str:
        """Digest of the file's bytes.

        Raises:
            BadImageError: If the file cannot be read.
        """
        return content_digest(read_bytes(self.path(index)))


@dataclass(frozen=True, eq=False)
class Subset:
    """Some images of another set, with their labels and digests."""

    parent: ImageSet
    indices: Int[np.ndarray, " n"]
    """Positions in the parent."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names by label, those of the parent."""
        return self.parent.class_names

    @cached_property  # asked for with every sample
    def labels(self) -> Int[np.ndarray, " n"]:
        """Class of each image, int64."""
        labels: Int[np.ndarray, " n"] = self.parent.labels[self.indices]
        return labels

    def __len__(self) -> int:
        """Number of images."""
        return len(self.indices)

    def load(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        """Pixels of one image.

        Raises:
            BadImageError: If it cannot be read.
        """
        return self.parent.load(int(self.indices[index]))

    def digest(self, index: int) -> str:
        """Digest of one image's content."""
        return self.parent.digest(int(self.indices[index]))


@dataclass(frozen=True, kw_only=True)
class Splits:
    """A data set ready for training; all splits share one tuple of class names."""

    train: ImageSet
    val: ImageSet
    test: ImageSet
    skipped: tuple[str, ...] = ()
    """Unreadable files that were left out."""


def groups_of(images: ImageSet) -> Groups | None:
    """The groups of a set's images, in the set's order; None where it comes without."""
    if isinstance(images, Subset):
        whole = groups_of(images.parent)
        return whole and Groups(whole.names, whole.numbers[images.indices])
    return images.groups if isinstance(images, FolderSet) else None


def file_names_of(images: ImageSet) -> tuple[str, ...]:
    """The files of a set's images, in the set's order; none where they are not in files."""
    if isinstance(images, Subset):
        names = file_names_of(images.parent)
        return names and tuple(names[index] for index in images.indices)
    return images.files if isinstance(images, FolderSet) else ()


def pixel_digest(image: UInt8[np.ndarray, "h w 3"]) -> str:
    """BLAKE2b of shape and pixels, for images that have no file."""
    return content_digest(repr(image.shape).encode() + image.tobytes())
