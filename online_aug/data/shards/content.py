"""The content of one shard as its index keeps it: places, labels and digests of its images."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from cache import content_digest
from online_aug.data.images import BadImageError, check_content
from online_aug.errors import UserError, escaped
from online_aug.file_digests.known import HEADERS
from online_aug.file_digests.names import Names
from online_aug.file_digests.plain_images import is_plain_image

IMAGE = np.dtype(
    [("start", "<i8"), ("size", "<i8"), ("label", "<i4"), ("checked", "u1"), ("digest", "V16")]
)
"""Place of an image's bytes, its label as the shard has it, the level of the checks that it has
passed, and its digest. `start` counts from the start of the shard, or in its unpacked blocks."""
BLOCK = np.dtype(
    [("at", "<i8"), ("start", "<i8"), ("packed", "<u4"), ("unpacked", "<u4"), ("is_packed", "?")]
)
"""A part of a shard that is unpacked by itself: number of unpacked bytes before it, place in the
shard, size, and size when unpacked."""
Images = Shaped[np.ndarray, " images"]
Blocks = Shaped[np.ndarray, " blocks"]

_LARGEST_LABEL = 2**31 - 1
_WITHHELD = "with a withheld label"
WITHOUT_IMAGE = "without an image"
"""Reasons why a sample is left out."""


@dataclass(frozen=True)
class ShardFile:
    """A shard, and which of its values are images and labels."""

    name: str
    """Path relative to the folder of the shards."""
    image_key: str | None = None
    """Ending of the images in a tar, or their column; None finds it."""
    label_key: str | None = None
    """Key of the label in a sample's JSON, or its column; None is `.cls`, or the column found."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Content:
    """All that is known of a shard without reading it."""

    images: Images
    names: Names
    """Name of each image."""
    samples: int
    """Number of samples or rows, also of those that were left out."""
    blocks: Blocks
    """Parts that are to be unpacked, in order; none if images are in the shard as they are."""
    codec: str = ""
    """Codec of the blocks, as pyarrow calls it."""
    class_names: tuple[str, ...] | None = None
    """Names of the classes by label if the shard says them."""
    words: tuple[str, ...] | None = None
    """Labels if they are words; the label of an image is a place in it."""
    left_out: Mapping[str, int] | None = None
    """Number of samples that are not used, by reason."""


class ContentBuilder:
    """Collects the images of a shard in their order."""

    def __init__(self, path: Path) -> None:
        """Begin with nothing.

        Args:
            path: The shard, for messages.
        """
        self._path = path
        self._rows: list[tuple[int, int, int, int, bytes]] = []
        self._names: list[str] = []
        self._left_out: Counter[str] = Counter()
        self._words: dict[str, int] = {}

    def add(self, name: str, start: int, content: bytes, label: object) -> None:
        """Take one image; one with a negative label, which is withheld, is left out.

        Raises:
            UserError: If the label is no single class.
        """
        number = self._number(name, label)
        if number < 0:
            return self.leave_out(_WITHHELD)
        digest = bytes.fromhex(content_digest(content))
        self._rows.append((start, len(content), number, _level_of(content), digest))
        self._names.append(name.replace("\0", " "))
        return None

    def leave_out(self, reason: str) -> None:
        """Count a sample that is not used."""
        self._left_out[reason] += 1

    def finished(
        self,
        blocks: Blocks | None = None,
        codec: str = "",
        class_names: tuple[str, ...] | None = None,
    ) -> Content:
        """Return what was collected.

        Raises:
            UserError: If there is no image.
        """
        if not self._rows and not self._left_out[_WITHHELD]:
            why = ", ".join(f"{count} {reason}" for reason, count in self._left_out.items())
            raise UserError(
                f"{shown(self._path)} must hold labelled images, got "
                f"{f'none but {why}' if why else 'an empty shard'}"
            )
        return Content(
            images=np.array(self._rows, IMAGE),
            names=Names.of(self._names),
            samples=len(self._rows) + self._left_out.total(),
            blocks=np.zeros(0, BLOCK) if blocks is None else blocks,
            codec=codec,
            class_names=class_names,
            words=tuple(self._words) or None,
            left_out=dict(self._left_out),
        )

    def _number(self, name: str, label: object) -> int:
        is_word = isinstance(label, str)
        if is_word != bool(self._words) and (self._rows or self._words):
            raise UserError(f"labels of {shown(self._path)} must be all words or all numbers")
        if isinstance(label, str):
            return self._words.setdefault(label, len(self._words))
        if isinstance(label, bool) or not isinstance(label, int) or label > _LARGEST_LABEL:
            raise UserError(
                f"the label of {escaped(name)} in {shown(self._path)} must be one class as a whole "
                f"number, got {escaped(repr(label))[:80]}"
            )
        return label


def shown(path: Path) -> str:
    """Write a path so that a terminal and one line can hold it."""
    return escaped(str(path))


@cache
def import_arrow() -> Any:
    """Return pyarrow with its readers of Parquet and of Arrow files.

    Raises:
        UserError: If it is not installed.
    """
    try:
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError:
        raise UserError(
            "Parquet and Arrow shards need the package pyarrow; pip install 'online-aug[shards]'"
        ) from None
    return pyarrow


def _level_of(content: bytes) -> int:
    """Return the level of the checks that an image passes; why it fails is told when it is used."""
    if is_plain_image(content, content):
        return HEADERS
    try:
        check_content(content, "")
    except BadImageError:
        return 0
    return HEADERS
