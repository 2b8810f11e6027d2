"""Labelled images by index: the protocol, image folders, and parts of other sets.

A set of images in order, a batch at a time.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol
import numpy as np
from jaxtyping import Int, UInt8
from cache import content_digest
from online_aug.data.images import decode_image, read_bytes
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
import torch
from torch import Tensor
from online_aug.data.images import BadImageError
from online_aug.data.transforms import EvalTransform

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


MAX_THREADS = 8
BATCHES_AHEAD = 2

Pixels = UInt8[Tensor, "3 h w"]


def ordered_batches(
    images: ImageSet, transform: EvalTransform, batch_size: int, *, skips_bad_images: bool
) -> Iterator[tuple[UInt8[Tensor, "b 3 h w"], Int[Tensor, " b"]]]:
    """Images with their places in the set; threads decode ahead, which needs no start-up.

    Raises:
        BadImageError: If an image cannot be read and such images are not skipped.
    """
    loaded_as = partial(_load, images, transform, skips_bad_images)
    starts = deque(range(0, len(images), batch_size))
    waiting: deque[list[tuple[int, Future[Pixels | None]]]] = deque()
    with ThreadPoolExecutor(min(MAX_THREADS, len(os.sched_getaffinity(0)))) as pool:
        while starts or waiting:
            while starts and len(waiting) <= BATCHES_AHEAD:
                start = starts.popleft()
                indices = range(start, min(start + batch_size, len(images)))
                waiting.append([(index, pool.submit(loaded_as, index)) for index in indices])
            done = [(index, future.result()) for index, future in waiting.popleft()]
            good = [(index, image) for index, image in done if image is not None]
            if good:
                yield torch.stack([image for _, image in good]), torch.tensor([i for i, _ in good])


def _load(images: ImageSet, transform: EvalTransform, skips: bool, index: int) -> Pixels | None:
    try:
        pixels = images.load(index)
    except BadImageError:
        if skips:
            return None
        raise
    image = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
    return transform(image)
