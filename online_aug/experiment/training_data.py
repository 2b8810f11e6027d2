"""The training images of an experiment: digests, labels, class names, and weights by a file."""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from online_aug.data.image_sets import ImageSet, digests_of
from online_aug.data.sources import data_set_name
from online_aug.documents import DocumentError, read_object
from online_aug.errors import UserError
from online_aug.methods import Source
from online_aug.request import GenerationRequest

_MAX_WEIGHTS_BYTES = 2**30


@dataclass(frozen=True)
class TrainingData:
    """The training images of an experiment, as planning sees them."""

    source: str
    """What `data.source` names."""
    images: ImageSet

    @cached_property
    def sources(self) -> list[Source]:
        """Digest and label of every training image, in the order of the set."""
        return [
            Source(digest=digest, label=label)
            for digest, label in zip(
                digests_of(self.images), self.images.labels.tolist(), strict=True
            )
        ]

    @cached_property
    def digests(self) -> tuple[str, ...]:
        """Digests of the training images, each once, sorted."""
        return tuple(sorted({source.digest for source in self.sources}))

    @cached_property
    def places(self) -> dict[str, int]:
        """Index of an image with each digest."""
        return {source.digest: place for place, source in enumerate(self.sources)}

    @property
    def class_sizes(self) -> list[int]:
        """Number of training images of each class."""
        counts = Counter(source.label for source in self.sources)
        return [counts[label] for label in range(len(self.images.class_names))]

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


def read_image_weights(
    path: Path, digests: Sequence[str], files: Sequence[str]
) -> dict[str, float]:
    """Read the weights of training images from a file; return them by the images' digests.

    Args:
        path: JSON file that maps images to numbers above 0. An image is named by its file as the
            data set lists it, or by its digest.
        digests: Digests of the training images.
        files: Files of the same images; empty if they are not in files.

    Raises:
        UserError: If it cannot be read, or holds other images or other numbers.
    """
    named = dict(zip(digests, digests, strict=True))
    if files:
        named |= dict(zip(files, digests, strict=True))
    weights = {}
    for name, weight in _read(path).items():
        if name not in named:
            raise UserError(
                "schedule.image_weights must name training images, such as "
                f"{[*digests, *files][-1]!r}, got {name!r} in {path}"
            )
        if not _is_weight(weight):
            raise UserError(
                "schedule.image_weights must hold numbers above 0, got "
                f"{json.dumps(weight)} for {name!r} in {path}"
            )
        weights[named[name]] = float(weight)
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
