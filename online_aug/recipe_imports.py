"""The imported images of a recipe: which of them it can serve, and why not the others."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from cache import Scalar, Store
from online_aug.config import Config
from online_aug.dataloader.image_sets import ImageSet, file_names_of
from online_aug.errors import UserError
from online_aug.methods import METHODS, Source
from online_aug.records import ImportedImage

_REASONS_SHOWN = 3


@dataclass(frozen=True)
class Imports:
    """What a cache has of other programs' images, as one recipe sees it."""

    images: list[ImportedImage] = field(default_factory=list)
    """Those it can serve, in the order of the log."""
    misfits: Counter[str] = field(default_factory=Counter)
    """How many others there are, by the reason against them."""

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
class RecipeImports:
    """Finds images whose requests, though partial, say what it takes to label them."""

    config: Config
    train: ImageSet
    sources: Sequence[Source]

    def find(self) -> Imports:
        """Look through what was imported into the cache.

        Raises:
            UserError: If nothing was, or nothing that fits.
            CacheError: If there is no cache.
        """
        found = Imports()
        with Store(self.config.cache.path, readonly=True) as store:
            for key, request in store.requests({"origin": "import"}):
                try:
                    found.images.append(self.image(key, request))
                except _MisfitError as error:
                    found.misfits[str(error)] += 1
        if not found.images:
            path = self.config.cache.path
            raise UserError(
                f"mixing.imported must find imported images that fit in {path}, got none: "
                + (str(found) if found.misfits else f"python -m cache import {path} brings them in")
            )
        return found

    def image(self, key: bytes, request: Mapping[str, Scalar]) -> ImportedImage:
        """One imported image, by the fields of its request."""
        source, target = self._label(request, "source"), self._label(request, "target")
        image = ImportedImage(
            key=key,
            method=self.config.methods[0].name,  # of several none would be served
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
        if reason := METHODS[image.method].misfit(image):
            raise _MisfitError(reason)
        return image

    def _label(self, request: Mapping[str, Scalar], side: str) -> int:
        name, label = request.get(f"{side}_class"), request.get(f"{side}_label")
        if isinstance(name, str):
            if _loose(name) not in self._labels:
                raise _MisfitError(f"the data set has no class {name[:80]!r}")
            return self._labels[_loose(name)]
        is_label = isinstance(label, int) and not isinstance(label, bool)
        if is_label and label is not None and 0 <= int(label) < len(self.train.class_names):
            return int(label)
        raise _MisfitError(f"its {side} class is not known")

    def _digest(self, request: Mapping[str, Scalar], label: int) -> str | None:
        place = self._files.get((label, str(request.get("source_file"))))
        return None if place is None else self.sources[place].digest

    @cached_property
    def _labels(self) -> dict[str, int]:
        return {_loose(name): label for label, name in enumerate(self.train.class_names)}

    @cached_property
    def _files(self) -> dict[tuple[int, str], int]:
        """Places of the training images by class and file name, where no two share both."""
        places: dict[tuple[int, str], list[int]] = {}
        for place, name in enumerate(file_names_of(self.train)):
            file = (int(self.train.labels[place]), name.rpartition("/")[2])
            places.setdefault(file, []).append(place)
        return {file: there[0] for file, there in places.items() if len(there) == 1}


class _MisfitError(Exception):
    """Why an image cannot be served."""


def _strength(request: Mapping[str, Scalar], *, is_needed: bool) -> float:
    strength = request.get("strength")
    if isinstance(strength, float) and 0 < strength <= 1:
        return strength
    if is_needed:
        raise _MisfitError("its strength is not known, which a label between two classes asks for")
    return 1.0  # of one class the label is the same at any strength


def _loose(name: str) -> str:
    return name.replace("_", " ").replace("/", " ").strip()
