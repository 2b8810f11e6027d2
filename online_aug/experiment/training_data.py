"""The training images of an experiment: digests, labels, class names, and weights by a file."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
from jaxtyping import Int

from cache import content_digest
from online_aug.data.image_sets import ImageSet, digests_of
from online_aug.data.sources import data_set_name
from online_aug.documents import DocumentError, read_object
from online_aug.errors import UserError
from online_aug.file_digests.digests import Digests, Places
from online_aug.methods import Source
from online_aug.planning import Images
from online_aug.request import GenerationRequest

_MAX_WEIGHTS_BYTES = 2**30


@dataclass(frozen=True, eq=False)
class Sources(Sequence[Source]):
    """Digests and labels of training images; an item is a `Source`, made when it is asked for."""

    digests: Digests
    labels: Int[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.labels)

    @overload
    def __getitem__(self, index: int) -> Source: ...
    @overload
    def __getitem__(self, index: slice) -> "Sources": ...
    def __getitem__(self, index: int | slice) -> "Source | Sources":
        """Return one, or some of them."""
        if isinstance(index, slice):
            return Sources(self.digests[index], self.labels[index])
        return Source(digest=self.digests[index], label=int(self.labels[index]))

    def __iter__(self) -> Iterator[Source]:
        for digest, label in zip(self.digests, self.labels, strict=True):
            yield Source(digest=digest, label=int(label))

    def content_digest(self) -> str:
        """Return the digest of all, in their order."""
        return content_digest(self.digests.rows.tobytes() + self.labels.tobytes())

    def in_order_of_digests(self) -> "Sources":
        """Return the same in an order that does not depend on that of the set."""
        order = np.lexsort((self.labels, *self.digests.rows.T[::-1]))
        return Sources(self.digests[order], self.labels[order])


@dataclass(frozen=True)
class TrainingData:
    """The training images of an experiment, as planning sees them."""

    source: str
    """What `data.source` names."""
    images: ImageSet

    @cached_property
    def sources(self) -> Sources:
        """Digest and label of every training image, in the order of the set."""
        return Sources(digests_of(self.images), self.images.labels)

    @property
    def digests(self) -> Digests:
        """Digests of the training images, each once, sorted."""
        return self.sources.digests.sorted

    @cached_property
    def distinct(self) -> Images:
        """The training images as plans number them: each content once, by its digest."""
        return Images(self.sources.digests, self.sources.labels)

    @property
    def places(self) -> Places:
        """Index of an image with each digest."""
        return self.sources.digests.places

    @property
    def class_sizes(self) -> list[int]:
        """Number of training images of each class."""
        classes = len(self.images.class_names)
        counts: list[int] = np.bincount(self.images.labels, minlength=classes).tolist()
        return counts

    def classes_of(self, request: GenerationRequest) -> dict[str, str]:
        """Return the names of data set and classes that the cache keeps with an image."""
        names = self.images.class_names
        return {
            "data_set": self.data_set,
            "source_class": names[request.source_label],
            "target_class": names[request.target_label],
        }

    @cached_property
    def data_set(self) -> str:
        """Name by which the cache knows the data set."""
        return data_set_name(self.source, self.images.class_names)


def read_image_weights(path: Path, digests: Digests, files: Sequence[str]) -> dict[str, float]:
    """Read the weights of training images from a file; return them by the images' digests.

    Args:
        path: JSON file that maps images to numbers above 0. An image is named by its file as the
            data set lists it, or by its digest.
        digests: Digests of the training images.
        files: Files of the same images; empty if they are not in files.

    Raises:
        UserError: If it cannot be read, or holds other images or other numbers.
    """
    told, weights = _read(path), {}
    named = {name: place for place, name in enumerate(files) if name in told}
    for name, weight in told.items():
        place = named.get(name, digests.places.get(name))
        if place is None:
            raise UserError(
                "schedule.image_weights must name training images, such as "
                f"{(files or digests)[-1]!r}, got {name!r} in {path}"
            )
        if not _is_weight(weight):
            raise UserError(
                "schedule.image_weights must hold numbers above 0, got "
                f"{json.dumps(weight)} for {name!r} in {path}"
            )
        weights[digests[place]] = float(weight)
    return weights


def _read(path: Path) -> Mapping[str, Any]:
    try:
        return read_object(path, limit=_MAX_WEIGHTS_BYTES)
    except DocumentError as error:
        raise UserError(
            "schedule.image_weights must be a JSON file that maps images to weights, cannot use "
            f"{path}: {error}"
        ) from None


def _is_weight(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and value > 0
