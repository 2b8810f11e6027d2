"""The data set that a DataLoader worker reads: one sample for a slot.

The real image, the generated one composed with it, or one composed of training images is
transformed and gets its soft label.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from cache import CacheError, CorruptRecordError, Record, Store
from online_aug.config import Config
from online_aug.config.training import CMO_RESTS
from online_aug.data.image_sets import ImageSet, fitted, size_of
from online_aug.data.images import BadImageError
from online_aug.labels import one_hot
from online_aug.loader.batch import Sample, SoftLabel
from online_aug.loader.slots import Kind, Slot
from online_aug.methods.cmo import RareForegrounds, rare_class_chances
from online_aug.request import Servable
from online_aug.seeding import numpy_rng, seed_of, torch_rng

_log = logging.getLogger(__name__)
Image = UInt8[np.ndarray, "h w 3"]
Label = Float[np.ndarray, " k"]
Transform = Callable[[UInt8[Tensor, "3 h w"], torch.Generator], Shaped[Tensor, " *image"]]
Compose = Callable[[Callable[[], Image], Image, Servable, np.random.Generator], tuple[Image, Label]]
"""Makes a sample: source image (read only if called), generated image, request and random numbers
to the image that is served and its soft label."""
ComposeAlone = Callable[[int, np.random.Generator], tuple[Image, Label] | str]
"""Makes a sample without a generator: index of the real image at its slot and random numbers to the
image that is served and its soft label, or to the reason why none can be composed."""
UNREADABLE = "unreadable image"
"""The reason if an image is lost that a sample was to be composed of."""


class _Content(NamedTuple):
    image: Image
    label: Label
    kind: Kind
    refusal: str | None = None


@dataclass(kw_only=True)
class MixedDataset(Dataset[Sample]):
    """Samples by slot; pickles to worker processes, each of which opens the cache for itself."""

    images: ImageSet
    plan: Sequence[Servable]
    """Requests by number: those of the pool. They grow in the main process while no worker runs."""
    places: Mapping[str, int]
    """Index in `images` of the source image with each digest."""
    compose: Compose | None
    """Makes a sample of a generated image; None if no such image is served."""
    compose_alone: ComposeAlone | None = None
    """Makes a sample without a generator; None if no such sample is served."""
    store: Store
    transform: Transform
    seed: int
    skips_bad_images: bool
    restores_size: bool = False
    """Whether a generated image is brought back to the size and aspect of its source first, because
    the transform depends on them."""
    foregrounds: RareForegrounds | None = None
    """Draws what is put onto transformed images; None if nothing is."""

    def __len__(self) -> int:
        """Return the number of real images."""
        return len(self.images)

    def __getitem__(self, slot: Slot) -> Sample:
        """Return the sample of a slot; the real image if what was planned cannot be served."""
        found = self._found(slot)
        pixels = torch.from_numpy(found.image)
        rng = torch_rng(seed_of("transform", self.seed, slot.epoch, slot.position))
        image, label = self.transform(pixels.permute(2, 0, 1), rng), torch.from_numpy(found.label)
        if self.foregrounds is not None:
            image, label = self._pasted_on(slot, image, label, self.foregrounds)
        return Sample(image, SoftLabel.of(label), found.kind, found.refusal)

    def _pasted_on(
        self, slot: Slot, image: Tensor, label: Tensor, foregrounds: RareForegrounds
    ) -> tuple[Tensor, Tensor]:
        pasted = foregrounds.draw(slot.epoch, slot.position, image.shape)
        if pasted is None:
            return image, label
        other, other_label = self._real(pasted.number)
        pixels = torch.from_numpy(np.require(other, requirements=["C", "W"])).permute(2, 0, 1)
        rng = torch_rng(seed_of("cmo-transform", self.seed, slot.epoch, slot.position))
        return pasted.put_on(
            image, label, self.transform(pixels, rng), torch.from_numpy(other_label)
        )

    def read(self, slot: Slot) -> tuple[Image, Label]:
        """Return the image of a slot, before any transform, and its soft label."""
        found = self._found(slot)
        return found.image, found.label

    def _found(self, slot: Slot) -> _Content:
        found = self._composed(slot) if slot.kind is Kind.COMPOSED else self._content(slot)
        # The cache gives read-only arrays, which torch does not take.
        return found._replace(image=np.require(found.image, requirements=["C", "W"]))

    def _content(self, slot: Slot) -> _Content:
        if slot.number < 0 or self.compose is None:
            return _Content(*self._real(slot.index), slot.kind)
        request = self.plan[slot.number]
        record = self._record(request.key)
        if record is None:
            return _Content(*self._real(slot.index), Kind.STARVED)
        try:
            composed = self.compose(
                lambda: self._source(request), record.image, request, self._rng(slot)
            )
        except BadImageError as error:
            self._skip(error)
            return _Content(*self._real(slot.index), Kind.STARVED)
        return _Content(self._restored(composed[0], request), composed[1], slot.kind)

    def _restored(self, image: Image, request: Servable) -> UInt8[np.ndarray, "a b 3"]:
        """Return a generated image at its source's size; one of unknown source as it is."""
        if not self.restores_size or request.source_digest is None:
            return image
        try:
            return fitted(image, size_of(self.images, self.places[request.source_digest]))
        except BadImageError as error:
            self._skip(error)
            return image

    def _composed(self, slot: Slot) -> _Content:
        assert self.compose_alone is not None  # else no slot is planned so
        try:
            found = self.compose_alone(slot.index, self._rng(slot))
        except BadImageError as error:
            self._skip(error)
            found = UNREADABLE
        if isinstance(found, str):
            return _Content(*self._real(slot.index), Kind.STARVED, found)
        return _Content(*found, Kind.COMPOSED)

    def _rng(self, slot: Slot) -> np.random.Generator:
        return numpy_rng("compose", self.seed, slot.epoch, slot.position)

    def _skip(self, error: BadImageError) -> None:
        if not self.skips_bad_images:
            raise error
        _log.warning("skipped: %s", error)

    def _source(self, request: Servable) -> Image:
        assert request.source_digest is not None  # else the method does not ask for the image
        return self.images.load(self.places[request.source_digest])

    def _record(self, key: bytes) -> Record | None:
        """Return the record of a request; a corrupt one is removed, to be made again."""
        try:
            return self.store.get(key)
        except CacheError as error:
            _log.warning("a cached image cannot be used, the real one is served: %s", error)
            if isinstance(error, CorruptRecordError):
                self._drop(key)
        return None

    def _drop(self, key: bytes) -> None:
        try:
            self.store.drop_corrupt(key)
        except CacheError as error:
            _log.warning("a corrupt record stays in the cache: %s", error)

    def _real(self, index: int) -> tuple[Image, Label]:
        """Return the image at `index`, or the next one that can be read if bad ones are skipped."""
        for candidate in range(index, index + len(self.images)):
            place = candidate % len(self.images)
            try:
                image = self.images.load(place)
            except BadImageError as error:
                self._skip(error)
                continue
            return image, one_hot(int(self.images.labels[place]), len(self.images.class_names))
        raise BadImageError("no image of the training set can be read")


def foregrounds_of(config: Config, labels: Int[np.ndarray, " n"]) -> RareForegrounds | None:
    """Return what `optim.cmo` puts onto the images of a run, None without it.

    Args:
        config: The configuration of the run.
        labels: Class of each training image.
    """
    optim = config.optim
    if optim.cmo is None:
        return None
    return RareForegrounds(
        chances=rare_class_chances(labels),
        beta=optim.cmo,
        probability=optim.mix_probability,
        slots_a_draw=optim.batch_size if optim.mix_by == "batch" else 1,
        epochs=range(CMO_RESTS[0], config.run.epochs - CMO_RESTS[1]),
        seed=config.run.seed,
    )
