"""The images of an experiment: training images by digest, samples made of them, imported images.

`ImportFinder` finds out which images of other programs an experiment can serve, and why not the
others. `read_image_weights` reads which training images are to be varied first.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from cache import Scalar, Store, label_of
from online_aug.config import Config
from online_aug.data.image_sets import ImageSet, file_names_of
from online_aug.documents import DocumentError, read_object
from online_aug.errors import UserError
from online_aug.methods import Method, Part, Picture, Source, make_method
from online_aug.request import ImportedImage, Servable

_REASONS_SHOWN = 3
_MAX_WEIGHTS_BYTES = 2**30


@dataclass(frozen=True)
class Imports:
    """The images of other programs in a cache, as one experiment sees them."""

    images: list[ImportedImage] = field(default_factory=list)
    """Images that it can serve, in the order of the log."""
    misfits: Counter[str] = field(default_factory=Counter)
    """Number of images that it cannot serve, by reason."""

    def __str__(self) -> str:
        left_out = "".join(
            f"; {count} left out: {reason}"
            for reason, count in self.misfits.most_common(_REASONS_SHOWN)
        )
        rest = len(self.misfits) - _REASONS_SHOWN
        return f"{len(self.images)} images fit{left_out}" + (
            f"; {rest} more reasons" if rest > 0 else ""
        )


@dataclass(frozen=True)
class ImportFinder:
    """Finds imported images whose requests, though partial, say enough to label them."""

    config: Config
    train: ImageSet
    sources: Sequence[Source]

    def find(self) -> Imports:
        """Look through the imported images of the cache.

        Raises:
            UserError: If there are none, or none that fits.
            CacheError: If there is no cache.
        """
        found = Imports()
        with Store(self.config.cache.path, readonly=True) as store:
            for key, request in store.requests({"origin": "import"}):
                try:
                    found.images.append(self.image(key, request))
                except _MisfitError as error:
                    found.misfits[str(error)] += 1
            own = len(store) - found.misfits.total()
        if not found.images:
            path = self.config.cache.path
            way_out = f"online-aug cache import {path} FOLDER brings them in"
            if own:
                way_out = (
                    f"its {own} images are online-aug's own, imported again or not, and are served "
                    "by the settings they were made with and mixing.imported=null"
                )
            raise UserError(
                f"mixing.imported must find images of other programs that fit in {path}, got none: "
                f"{found if found.misfits else way_out}"
            )
        return found

    def image(self, key: bytes, request: Mapping[str, Scalar]) -> ImportedImage:
        """Return an imported image by the fields of its request."""
        source, target = self._label(request, "source"), self._label(request, "target")
        image = ImportedImage(
            key=key,
            method=self._method.name,
            source_digest=self._digest(request, source),
            source_label=source,
            target_label=target,
            strength=_strength(request, is_needed=source != target),
        )
        policy = self.config.mixing.policy
        if image.source_digest is None and policy != "global":
            raise _MisfitError(
                f"its source image is not known, which mixing.policy {policy} asks for"
            )
        if reason := self._method.misfit(image):
            raise _MisfitError(reason)
        return image

    @cached_property
    def _method(self) -> Method:
        return make_method(self.config.methods[0])  # several would serve no imported images

    def _label(self, request: Mapping[str, Scalar], side: str) -> int:
        name, label = request.get(f"{side}_class"), label_of(request, side)
        if isinstance(name, str):
            if _loose(name) not in self._labels:
                raise _MisfitError(f"the data set has no class {name[:80]!r}")
            return self._labels[_loose(name)]
        if label is not None and label < len(self.train.class_names):
            return label
        raise _MisfitError(f"its {side} class is not known")

    def _digest(self, request: Mapping[str, Scalar], label: int) -> str | None:
        place = self._files.get((label, str(request.get("source_file"))))
        return None if place is None else self.sources[place].digest

    @cached_property
    def _labels(self) -> dict[str, int]:
        return {_loose(name): label for label, name in enumerate(self.train.class_names)}

    @cached_property
    def _files(self) -> dict[tuple[int, str], int]:
        """Training images by class and file name, if no two share both."""
        places: dict[tuple[int, str], list[int]] = {}
        for place, name in enumerate(file_names_of(self.train)):
            file = (int(self.train.labels[place]), name.rpartition("/")[2])
            places.setdefault(file, []).append(place)
        return {file: there[0] for file, there in places.items() if len(there) == 1}


class _MisfitError(Exception):
    """An imported image cannot be served; the message says why."""


def _strength(request: Mapping[str, Scalar], *, is_needed: bool) -> float:
    strength = request.get("strength")
    if isinstance(strength, float) and 0 < strength <= 1:
        return strength
    if is_needed:
        raise _MisfitError("its strength is not known, which a label between two classes asks for")
    return 1.0  # within one class the label does not depend on it


def _loose(name: str) -> str:
    return name.replace("_", " ").replace("/", " ").strip()


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


@dataclass(frozen=True)
class BoundCompose:
    """Composes images by the methods of one experiment; pickles to loader processes."""

    parts: Mapping[str, Part]
    """Methods and their contexts by name."""

    def __call__(
        self,
        source: Callable[[], Picture],
        generated: Picture,
        request: Servable,
        rng: np.random.Generator,
    ) -> tuple[Picture, Float[np.ndarray, " k"]]:
        """Return image and soft label of one synthetic sample."""
        part = self.parts[request.method]
        return part.method.compose(source, generated, request, part.context, rng)


class SourceImages:
    """Training images by digest, as tensors."""

    def __init__(self, images: ImageSet, sources: Sequence[Source]) -> None:
        self._images = images
        self._places = {source.digest: place for place, source in enumerate(sources)}

    def by_digest(self, digest: str) -> UInt8[Tensor, "3 h w"]:
        """Return the image with this content.

        Raises:
            BadImageError: If it can no longer be read.
        """
        return self.by_index(self._places[digest])

    def by_index(self, index: int) -> UInt8[Tensor, "3 h w"]:
        """Return the image at this index of the training set."""
        return torch.from_numpy(self._images.load(index).copy()).permute(2, 0, 1)
