"""Labelled images by index: the protocol, image files, subsets, and batches in order."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from cache import content_digest
from online_aug.console import terminal_progress
from online_aug.cores import usable_cores
from online_aug.data.images import WAY_OUT, BadImageError, decode_image, image_size, read_bytes
from online_aug.data.shards.shard_set import ShardSet
from online_aug.data.transforms import EvalTransform, resize
from online_aug.file_digests.digests import Digests
from online_aug.file_digests.known import KnownFiles
from online_aug.file_digests.names import Names

_MAX_THREADS = 8
_BATCHES_AHEAD = 2
_SHOWN_NAMES = 5
_Pixels = UInt8[Tensor, "3 h w"]


class ImageSet(Protocol):
    """One split of labelled images; it can be pickled and decodes nothing until `load`."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes by label; the same for all splits of a data set."""

    @property
    def labels(self) -> Int[np.ndarray, " n"]:
        """Label of each image, int64."""

    def __len__(self) -> int:
        """Return the number of images."""

    def load(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        """Decode one image.

        Raises:
            BadImageError: If it cannot be read.
        """

    def digest(self, index: int) -> str:
        """Return the hexadecimal digest of one image's content, by which requests name it."""


@dataclass(frozen=True, eq=False)
class Groups:
    """A second division of a set's images, such as class and background together."""

    names: tuple[str, ...]
    numbers: Int[np.ndarray, " n"]
    """Group of each image, as an index into `names`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class FolderSet:
    """A split whose images are files."""

    root: Path
    files: Sequence[str]
    """Paths relative to `root`."""
    class_names: tuple[str, ...]
    labels: Int[np.ndarray, " n"]
    groups: Groups | None = None
    """Groups of the images if the data set defines some."""
    passed_over: Mapping[str, int] = field(default_factory=dict)
    """Number of files beside the images that are of no kind that is read, by suffix."""
    known: KnownFiles | None = None
    """What earlier runs knew of the files; None reads each whenever its digest is asked for."""

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.files)

    @cached_property
    def names(self) -> Names:
        """The same paths in little memory."""
        return self.files if isinstance(self.files, Names) else Names.of(self.files)

    def path(self, index: int) -> Path:
        """Return the file of one image."""
        return self.root / self.files[index]

    def load(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        """Decode one image.

        Raises:
            BadImageError: If it cannot be read; names the file.
        """
        return decode_image(read_bytes(self.path(index)), str(self.path(index)))

    def digest(self, index: int) -> str:
        """Return the digest of the file's bytes.

        Raises:
            BadImageError: If the file cannot be read.
        """
        return content_digest(read_bytes(self.path(index)))


@dataclass(frozen=True, eq=False)
class Subset:
    """Some images of another set, with their labels and digests."""

    parent: ImageSet
    indices: Int[np.ndarray, " n"]
    """Indices into the parent."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the parent's classes by label."""
        return self.parent.class_names

    @cached_property  # asked for with every sample
    def labels(self) -> Int[np.ndarray, " n"]:
        """Label of each image, int64."""
        labels: Int[np.ndarray, " n"] = self.parent.labels[self.indices]
        return labels

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.indices)

    def load(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        """Decode one image.

        Raises:
            BadImageError: If it cannot be read.
        """
        return self.parent.load(int(self.indices[index]))

    def digest(self, index: int) -> str:
        """Return the digest of one image's content."""
        return self.parent.digest(int(self.indices[index]))


@dataclass(frozen=True, kw_only=True)
class Splits:
    """A data set ready for training; all splits share one tuple of class names."""

    train: ImageSet
    val: ImageSet
    test: ImageSet
    skipped: tuple[str, ...] = ()
    """Unreadable files that were left out."""
    doubts: tuple[str, ...] = ()
    """What was made of folders that might have been meant otherwise, in lines."""

    def save_known(self) -> None:
        """Keep checks and digests of the files beside the cache, now that there is one."""
        for images in (self.train, self.val, self.test):
            whole = _whole_of(images)
            if isinstance(whole, ShardSet):
                whole.save()
            elif isinstance(whole, FolderSet) and whole.known is not None:
                whole.known.save()

    def __str__(self) -> str:
        names = self.train.class_names
        shown = ", ".join(names[:_SHOWN_NAMES]) + (", ..." if len(names) > _SHOWN_NAMES else "")
        left_out = f"; {len(self.skipped)} unreadable left out" if self.skipped else ""
        return (
            f"{len(self.train)} train, {len(self.val)} val, {len(self.test)} test images of "
            f"{len(names)} classes ({shown}){left_out}"
        )


def groups_of(images: ImageSet) -> Groups | None:
    """Return the groups of a set's images in the set's order, or None if it has none."""
    if isinstance(images, Subset):
        whole = groups_of(images.parent)
        return whole and Groups(whole.names, whole.numbers[images.indices])
    return images.groups if isinstance(images, FolderSet) else None


def file_names_of(images: ImageSet) -> Names:
    """Return the files of a set's images in the set's order, or nothing if they are not files.

    For an image in a shard it is the shard, and its name in it.
    """
    whole = _whole_of(images)
    if not isinstance(whole, FolderSet | ShardSet):
        return Names.of(())
    return whole.names if whole is images else whole.names[_places_of(images)]


def share_of_endings(images: ImageSet, suffixes: Sequence[str]) -> float:
    """Return the share of a set's images whose files have such endings, in capitals or not."""
    whole = _whole_of(images)
    if not isinstance(whole, FolderSet | ShardSet) or not len(images):
        return 0.0
    are_such = np.logical_or.reduce([whole.names.ends_with(suffix) for suffix in suffixes])
    return float(are_such[_places_of(images)].mean())


def folder_of(images: ImageSet) -> Path | None:
    """Return the folder to which the files of a set are relative, or None if they are not files."""
    if isinstance(images, Subset):
        return folder_of(images.parent)
    return images.root if isinstance(images, FolderSet) else None


def digests_of(images: ImageSet) -> Digests:
    """Return the digests of all images in the set's order; files that are known are not read.

    Raises:
        BadImageError: If a file cannot be read.
    """
    whole = _whole_of(images)
    if isinstance(whole, ShardSet):
        return whole.digests(_places_of(images))
    if not isinstance(whole, FolderSet) or whole.known is None:
        return Digests.of(images.digest(index) for index in range(len(images)))
    try:
        with terminal_progress("reading images") as report:
            return whole.known.digests(_places_of(images), report)
    except OSError as error:
        raise BadImageError(f"{error.filename}: {error.strerror}; {WAY_OUT}") from error


def _whole_of(images: ImageSet) -> ImageSet:
    """Return the set that a set is cut from."""
    return _whole_of(images.parent) if isinstance(images, Subset) else images


def _places_of(images: ImageSet) -> Int[np.ndarray, " n"]:
    """Return where the images of a set are in the set that it is cut from."""
    if isinstance(images, Subset):
        return np.asarray(_places_of(images.parent)[images.indices])
    return np.arange(len(images))


def size_of(images: ImageSet, index: int) -> tuple[int, int]:
    """Return height and width of one image, px; of a file only the header is read.

    Raises:
        BadImageError: If it cannot be read.
    """
    if isinstance(images, Subset):
        return size_of(images.parent, int(images.indices[index]))
    if isinstance(images, FolderSet):
        return image_size(images.path(index))
    if isinstance(images, ShardSet):
        return images.size(index)
    height, width, _ = images.load(index).shape
    return height, width


def fitted(image: UInt8[np.ndarray, "h w 3"], size: tuple[int, int]) -> UInt8[np.ndarray, "a b 3"]:
    """Resize an image to a height and width in px."""
    if image.shape[:2] == size:
        return image
    pixels = torch.from_numpy(np.require(image, requirements=["C", "W"])).permute(2, 0, 1)
    return resize(pixels, *size).permute(1, 2, 0).numpy()


def order_digest(images: ImageSet) -> str:
    """Return the digest of labels and file names in the set's order, by which indices mean images.

    No file is read.
    """
    return content_digest(images.labels.tobytes() + file_names_of(images).content)


def pixel_digest(image: UInt8[np.ndarray, "h w 3"]) -> str:
    """Return the digest of shape and pixels, for an image that has no file."""
    return content_digest(repr(image.shape).encode() + image.tobytes())


def ordered_batches(
    images: ImageSet,
    transform: EvalTransform,
    batch_size: int,
    *,
    skips_bad_images: bool,
    on_bad_image: Callable[[BadImageError], None] = lambda error: None,
) -> Iterator[tuple[UInt8[Tensor, "b 3 h w"], Int[Tensor, " b"]]]:
    """Yield batches of transformed images with their indices, decoded ahead by threads.

    Threads, unlike loader processes, need no time to start.

    Args:
        images: The images.
        transform: Makes all of one size.
        batch_size: Images in a batch; one with skipped images is smaller.
        skips_bad_images: Whether images that cannot be read are left out.
        on_bad_image: Called with the error of each image that is left out.

    Raises:
        BadImageError: If an image cannot be read and such images are not skipped.
    """
    load = partial(_load, images, transform)
    starts = deque(range(0, len(images), batch_size))
    waiting: deque[list[tuple[int, Future[_Pixels | BadImageError]]]] = deque()
    with ThreadPoolExecutor(min(_MAX_THREADS, usable_cores())) as pool:
        while starts or waiting:
            while starts and len(waiting) <= _BATCHES_AHEAD:
                start = starts.popleft()
                indices = range(start, min(start + batch_size, len(images)))
                waiting.append([(index, pool.submit(load, index)) for index in indices])
            good = list[tuple[int, _Pixels]]()
            for index, future in waiting.popleft():
                image = future.result()
                if not isinstance(image, BadImageError):
                    good.append((index, image))
                elif skips_bad_images:
                    on_bad_image(image)
                else:
                    raise BadImageError(f"{image}; {WAY_OUT}") from image
            if good:
                yield torch.stack([image for _, image in good]), torch.tensor([i for i, _ in good])


def _load(images: ImageSet, transform: EvalTransform, index: int) -> _Pixels | BadImageError:
    try:
        pixels = images.load(index)
    except BadImageError as error:
        return error
    image = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
    return transform(image)
