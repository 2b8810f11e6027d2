"""A copy of a caller's data set on disk, which every process of a run reads.

The generation process and loader workers cannot ask the caller's own objects: these may be of a
notebook, hold open files, or be slow. The copy holds the pixels as they are, one image after the
other, so that reading one takes no decoding. Its folder bears the digest of all it holds.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from cache import content_digest
from online_aug.console import Report, counted
from online_aug.data.folders import written_once
from online_aug.data.image_sets import pixel_digest
from online_aug.data.images import BadImageError
from online_aug.data.map_style.items import Items, Picture
from online_aug.errors import UserError, escaped, one_line

_PIXELS, _CLASSES = "pixels.bin", "classes.json"
_ARRAYS = ("labels", "sizes", "digests")
_FORMAT = "copy 1"


@dataclass(frozen=True, kw_only=True, eq=False)
class CopiedSet:
    """A data set that a caller has brought along, read from its copy."""

    root: Path
    class_names: tuple[str, ...]
    labels: Int[np.ndarray, " n"]
    sizes: Int[np.ndarray, "n 2"]
    """Height and width of each image, px."""
    digests: np.ndarray
    """Digest of each image's pixels, as ASCII."""

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def load(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        """Read one image.

        Raises:
            BadImageError: If the copy has been removed or cut.
        """
        height, width = (int(side) for side in self.sizes[index])
        try:
            with (self.root / _PIXELS).open("rb") as file:
                file.seek(int(self._starts[index]))
                content = file.read(3 * height * width)
            return np.frombuffer(content, np.uint8).reshape(height, width, 3)
        except (OSError, ValueError) as error:
            raise BadImageError(
                f"image {index} of {self.root} cannot be read: {one_line(error)}"
            ) from None

    def digest(self, index: int) -> str:
        """Return the digest of one image's pixels."""
        return bytes(self.digests[index]).decode()

    @cached_property
    def _starts(self) -> Int[np.ndarray, " n"]:
        sizes = 3 * self.sizes.prod(1, dtype=np.int64)
        starts: np.ndarray = np.cumsum(sizes) - sizes
        return starts


def is_copy(folder: Path) -> bool:
    """Return whether a folder is such a copy."""
    return all((folder / name).is_file() for name in (_PIXELS, _CLASSES))


def open_copy(folder: Path) -> CopiedSet:
    """Open a copy.

    Raises:
        UserError: If it is damaged.
    """
    try:
        labels, sizes, digests = (
            np.load(folder / f"{name}.npy", allow_pickle=False) for name in _ARRAYS
        )
        names = json.loads((folder / _CLASSES).read_text(encoding="utf-8"))
        return CopiedSet(
            root=folder, class_names=tuple(names), labels=labels, sizes=sizes, digests=digests
        )
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"{folder} must be the copy of a data set, it is damaged: {one_line(error)}; remove "
            "it, and it is made again"
        ) from None


def copy_of(dataset: Any, class_names: Sequence[str] | None, root: Path) -> Path:
    """Return the folder of the copy of a caller's data set; it is made if it is missing.

    Every item is read, with a progress bar, and a second time if the copy has to be made.

    Args:
        dataset: As `Items` takes it.
        class_names: Names by label; None takes the data set's own.
        root: Folder that holds the copies.

    Raises:
        UserError: If an item cannot be used, or differs when it is read again, or the copy cannot
            be written.
    """
    items = Items(dataset, class_names)
    labels, sizes, digests = [], [], []
    for index in counted("reading the data set", range(len(items))):
        image, label = items.read(index)
        labels.append(label)
        sizes.append(image.shape[:2])
        digests.append(pixel_digest(image).encode())
    arrays = np.array(labels, np.int64), np.array(sizes, np.int64), np.array(digests)
    content = b"".join([json.dumps(items.class_names).encode(), *(a.tobytes() for a in arrays)])
    name = f"{escaped(type(dataset).__name__)}-{content_digest(content)[:12]}"

    def write(folder: Path, report: Report) -> None:
        folder.mkdir(parents=True)
        for array_name, array in zip(_ARRAYS, arrays, strict=True):
            np.save(folder / f"{array_name}.npy", array)
        (folder / _CLASSES).write_text(json.dumps(items.class_names), encoding="utf-8")
        with (folder / _PIXELS).open("wb") as file:
            for index, image in enumerate(_again(items, digests)):
                file.write(image.tobytes())
                report(index + 1, len(items))

    return written_once(root.expanduser().resolve() / name, _FORMAT, write)


def _again(items: Items, digests: Sequence[bytes]) -> Iterator[Picture]:
    for index, digest in enumerate(digests):
        image, _ = items.read(index)
        if pixel_digest(image).encode() != digest:
            raise UserError(
                "dataset must give the same pixels whenever it is asked, got others for item "
                f"{index}: leave random changes out of it and pass them as transform="
            )
        yield image
