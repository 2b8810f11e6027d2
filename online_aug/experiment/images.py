"""The images of an experiment: training images by digest, samples made of them, imported images.

`ImportFinder` finds out which images of other programs an experiment can serve, and why not the
others. `BoundCompose` and `ComposedSamples` make samples in a loader process.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from cache import Scalar, Store, label_of
from online_aug.classifier.class_names import labels_by_loose_name, loose
from online_aug.config import Config
from online_aug.data.image_sets import ImageSet, Splits, file_names_of, fitted
from online_aug.data.transforms import fit_square
from online_aug.errors import UserError
from online_aug.experiment.training_data import Sources
from online_aug.methods import Method, Part, Picture, Source, draw_part, make_method
from online_aug.methods.base import PictureOf
from online_aug.request import GenerationRequest, ImportedImage, Servable, SourceFilter
from online_aug.seeding import numpy_rng

if TYPE_CHECKING:
    from online_aug.experiment.experiment import Experiment

_REASONS_SHOWN = 3
_IMAGES_TRIED = 1000
"""Images that are planned to learn how many cannot be composed."""


@dataclass(frozen=True)
class Imports:
    """The images of other programs in a cache, as one experiment sees them."""

    images: list[ImportedImage] = field(default_factory=list)
    """Images that it can serve, in the order of the log."""
    misfits: Counter[str] = field(default_factory=Counter)
    """Number of images that it cannot serve, by reason."""
    of_test_images: Counter[str] = field(default_factory=Counter)
    """Number of images that are made, or may be, of test images, by how that is known."""

    def __str__(self) -> str:
        left_out = "".join(
            f"; {count} left out: {reason}"
            for reason, count in self.misfits.most_common(_REASONS_SHOWN)
        )
        rest = len(self.misfits) - _REASONS_SHOWN
        return f"{len(self.images)} images fit{left_out}" + (
            f"; {rest} more reasons" if rest > 0 else ""
        )

    @property
    def warnings(self) -> list[str]:
        """Doubts about the images that it can serve, in lines."""
        return [f"{count} imported images {said}" for said, count in self.of_test_images.items()]


@dataclass(frozen=True)
class ImportFinder:
    """Finds imported images whose requests, though partial, say enough to label them."""

    config: Config
    splits: Splits
    sources: Sequence[Source]

    def find(self) -> Imports:
        """Look through the imported images of the cache.

        Raises:
            UserError: If there are none, or none that fits.
            CacheError: If there is no cache.
        """
        found = Imports()
        with Store(self.config.cache.path, readonly=True) as store:
            for _, key, request in store.requests({"origin": "import"}):
                try:
                    image = self.image(key, request)
                except _MisfitError as error:
                    found.misfits[str(error)] += 1
                    continue
                found.images.append(image)
                if said := self._test_image(request, image):
                    found.of_test_images[said] += 1
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

    def _test_image(self, request: Mapping[str, Scalar], image: ImportedImage) -> str | None:
        """Say how it is known that the source of an image may be a test image, if it is."""
        data = self.config.data
        if image.source_digest is None and "source_file" in request:
            if (image.source_label, str(request["source_file"])) in self._test_files:
                return "are made of files that are test images of this data set"
        elif data.source == "oxford_flowers" and request.get("method") == "diff_mix":
            if data.train_split != "half":
                return (
                    "may be made of official test images: Diff-Mix's code trains on half of each "
                    "class of Flowers, which data.train_split=half takes"
                )
            if data.seed != 0:
                return (
                    "may be made of test images: Diff-Mix's halves are drawn by data.seed=0, got "
                    f"{data.seed}"
                )
        return None

    @property
    def train(self) -> ImageSet:
        """The training images."""
        return self.splits.train

    @cached_property
    def _test_files(self) -> set[tuple[int, str]]:
        test = self.splits.test
        names = file_names_of(test)
        return {(int(test.labels[n]), name.rpartition("/")[2]) for n, name in enumerate(names)}

    @cached_property
    def _method(self) -> Method:
        return make_method(self.config.methods[0])  # several would serve no imported images

    def _label(self, request: Mapping[str, Scalar], side: str) -> int:
        name, label = request.get(f"{side}_class"), label_of(request, side)
        if isinstance(name, str):
            label = self._labels.get(name, self._loose_labels.get(loose(name)))
            if label is None:
                raise _MisfitError(f"the data set has no class {name[:80]!r}")
            return label
        if label is not None and label < len(self.train.class_names):
            return label
        raise _MisfitError(f"its {side} class is not known")

    def _digest(self, request: Mapping[str, Scalar], label: int) -> str | None:
        place = self._files.get((label, str(request.get("source_file"))))
        return None if place is None else self.sources[place].digest

    @cached_property
    def _labels(self) -> dict[str, int]:
        return {name: label for label, name in enumerate(self.train.class_names)}

    @cached_property
    def _loose_labels(self) -> dict[str, int]:
        """Labels by loosely written names, as far as no two classes have the same."""
        return labels_by_loose_name(self.train.class_names)

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


@dataclass(frozen=True, kw_only=True)
class ComposedSamples:
    """Samples that methods compose of training images alone; pickles to loader processes."""

    images: ImageSet
    sources: Sequence[Source]
    """Digest and label of every image."""
    places: Mapping[str, int]
    """Index of an image with each digest."""
    parts: Sequence[Part]
    """The methods, drawn by their weights, with their contexts."""
    draws_source: bool = False
    """Whether any image may be the source, instead of the one at the slot."""

    @classmethod
    def of(cls, experiment: "Experiment") -> "ComposedSamples":
        """Return the samples of an experiment whose maps are made.

        Raises:
            UserError: If the cache does not hold the saliency maps that the methods look at.
        """
        parts = experiment.parts_by(experiment.saliency.version)
        return cls(
            images=experiment.splits.train,
            sources=experiment.data.sources,
            places=experiment.data.places,
            parts=[part for part in parts if not part.method.generates],
            draws_source=experiment.config.mixing.policy == "global",
        )

    def __call__(
        self, index: int, rng: np.random.Generator
    ) -> tuple[Picture, Float[np.ndarray, " k"]] | str:
        """Return image and soft label of one sample, or the reason why none can be composed.

        Args:
            index: The image at the slot.
            rng: Chance of this sample.

        Raises:
            BadImageError: If an image can no longer be read.
        """
        part, request = self.plan(index, rng)
        if reason := part.method.refusal(request, part.context):
            return reason
        source = self.read(request.source_digest)
        mixed = self.prepared(part, request, source)
        return part.method.compose(lambda: source, mixed, request, part.context, rng)

    def plan(self, index: int, rng: np.random.Generator) -> tuple[Part, GenerationRequest]:
        """Draw the method and what it makes of the source."""
        part = draw_part(self.parts, rng)
        source = self.sources[int(rng.integers(len(self.sources))) if self.draws_source else index]
        return part, part.method.plan(source, 0, part.context, rng)

    def prepared(self, part: Part, request: GenerationRequest, source: Picture) -> Picture:
        """Return what the method mixes of the source and others at its size."""
        image_of = self.reader(source.shape[:2])
        return np.asarray(part.method.prepare(source[None], [request], part.context, image_of)[0])

    def reader(self, size: tuple[int, int]) -> PictureOf:
        """Return what reads images by their digests and resizes them to a height and width."""
        return lambda digest: fitted(self.read(digest), size)

    def read(self, digest: str) -> Picture:
        """Return the image with this content."""
        return self.images.load(self.places[digest])

    def describe_refusals(self) -> str:
        """Say how many images cannot be composed and are served as they are, and why."""
        rng = numpy_rng("refusals")
        tried = rng.permutation(len(self.sources))[:_IMAGES_TRIED]
        planned = [self.plan(int(index), rng) for index in tried]
        found = (part.method.refusal(request, part.context) for part, request in planned)
        reasons = Counter(reason for reason in found if reason)
        names = ", ".join(part.method.name for part in self.parts)
        if not reasons:
            return f"{names}: every image can be composed ({len(tried)} tried)"
        said = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
        refused = f"{reasons.total()} of {len(tried)} images are served as they are"
        return f"{names}: {refused}: {said}"


class SourceImages:
    """Training images by digest, as tensors."""

    def __init__(self, images: ImageSet, sources: Sources) -> None:
        self._images = images
        self._places = sources.digests.places

    def by_digest(self, digest: str) -> UInt8[Tensor, "3 h w"]:
        """Return the image with this content.

        Raises:
            BadImageError: If it can no longer be read.
        """
        return self.by_index(self._places[digest])

    def square(self, digest: str, side: int, source_filter: SourceFilter) -> UInt8[Tensor, "3 s s"]:
        """Return an image as the generator starts from it, its aspect lost.

        Raises:
            BadImageError: If it can no longer be read.
        """
        image = self.by_digest(digest)
        if source_filter == "bilinear" or image.shape[1:] == (side, side):
            return fit_square(image, side)
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        made = np.array(picture.resize((side, side), Image.Resampling.BICUBIC))
        return torch.from_numpy(made).permute(2, 0, 1)

    def by_index(self, index: int) -> UInt8[Tensor, "3 h w"]:
        """Return the image at this index of the training set."""
        return torch.from_numpy(self._images.load(index).copy()).permute(2, 0, 1)
