"""Batches: as a worker collates them, and as the training loop gets them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from online_aug.errors import UserError
from online_aug.loader.slots import Kind
from online_aug.request import Counts


class Batch(tuple[Tensor, ...]):
    """A batch of samples: `images, labels = batch`.

    A tuple of two, so that libraries which move, pin or split batches know what to do with it. Such
    a library may make a new one of the two tensors alone, which then has no counts and no indices.
    """

    served: Counts
    """How the slots were filled."""
    indices: Int[Tensor, " b"]
    """The training image at each slot, by which losses are reported; empty if it is not known."""

    def __new__(
        cls,
        pair: Iterable[Tensor],
        *,
        served: Counts | None = None,
        indices: Int[Tensor, " b"] | None = None,
    ) -> Self:
        """Take images and soft labels, in this order."""
        self = super().__new__(cls, pair)
        self.served = Counts() if served is None else served
        self.indices = torch.zeros(0, dtype=torch.int64) if indices is None else indices
        return self

    @classmethod
    def of(
        cls,
        images: Shaped[Tensor, "b *image"],
        labels: Float[Tensor, "b k"],
        *,
        served: Counts | None = None,
        indices: Int[Tensor, " b"] | None = None,
    ) -> Self:
        """Return a batch of images with their soft labels."""
        return cls((images, labels), served=served, indices=indices)

    @property
    def images(self) -> Shaped[Tensor, "b *image"]:
        """The images: uint8, not normalised, or what the caller's own transform makes."""
        return self[0]

    @property
    def labels(self) -> Float[Tensor, "b k"]:
        """Soft labels, before label smoothing and mixup; a sparse tensor if the loader says so."""
        return self[1]

    def to(self, *args: Any, **options: Any) -> Self:
        """Return the batch on another device; the arguments are those of `Tensor.to`.

        A data type among them is that of the images alone.
        """
        images = self.images.to(*args, **options)
        moved = self.labels.to(images.device, non_blocking=bool(options.get("non_blocking")))
        return self._with(images, moved)

    def pin_memory(self) -> Self:
        """Return the batch in page-locked memory, from which a GPU copies while it computes."""
        return self._with(self.images.pin_memory(), self.labels.pin_memory())

    def _with(self, images: Tensor, labels: Tensor) -> Self:
        return type(self)((images, labels), served=self.served, indices=self.indices)


class SoftLabel(NamedTuple):
    """A soft label by the few classes that have a share in it."""

    classes: Int[np.ndarray, " m"]
    """The classes, ascending."""
    shares: Float[np.ndarray, " m"]
    """Their shares, float32."""
    num_classes: int

    @classmethod
    def of(cls, label: Float[np.ndarray, " k"] | Float[Tensor, " k"]) -> Self:
        """Return the classes and shares of a distribution over all classes."""
        values = np.asarray(label, np.float32)
        classes = np.flatnonzero(values)
        return cls(classes, values[classes], len(values))


class SoftLabels(NamedTuple):
    """The soft labels of a batch: as many bytes as there are shares, whatever the classes."""

    places: Int[Tensor, "2 m"]
    """Row and class of each share."""
    shares: Float[Tensor, " m"]
    shape: tuple[int, int]

    @classmethod
    def of(cls, labels: Sequence[SoftLabel]) -> Self:
        """Return the soft labels of samples."""
        rows = np.repeat(np.arange(len(labels)), [len(label.classes) for label in labels])
        classes = np.concatenate([label.classes for label in labels])
        return cls(
            torch.from_numpy(np.stack([rows, classes])),
            torch.from_numpy(np.concatenate([label.shares for label in labels])),
            (len(labels), labels[0].num_classes),
        )

    @property
    def nbytes(self) -> int:
        """Size in memory."""
        return self.places.nbytes + self.shares.nbytes

    def tensor(self) -> Float[Tensor, "b k"]:
        """Return the labels as a sparse tensor; `to_dense` makes the dense one, on any device."""
        return torch.sparse_coo_tensor(
            self.places, self.shares, self.shape, is_coalesced=True, check_invariants=False
        )


@dataclass(frozen=True)
class Sample:
    """A transformed image, its soft label, and how the slot was filled in the end."""

    image: Shaped[Tensor, " *image"]
    label: SoftLabel
    kind: Kind
    refusal: str | None = None
    """Why nothing was composed, if that was planned."""


class Collated(NamedTuple):
    """Stacked samples, how each slot was filled, and why nothing was composed for some."""

    images: Shaped[Tensor, "b *image"]
    labels: SoftLabels
    kinds: list[Kind]
    refusals: list[str]


def collate(samples: Sequence[Sample]) -> Collated:
    """Stack samples to a batch and note how their slots were filled.

    Raises:
        UserError: If their images differ in shape, which only a caller's own transform makes.
    """
    shapes = sorted({tuple(sample.image.shape) for sample in samples})
    if len(shapes) > 1:
        found = ", ".join(map(str, shapes[:3]))
        raise UserError(
            f"transform must make images of one shape, got {found} in one batch; end it with a "
            "resize or a crop to a fixed size"
        )
    return Collated(
        torch.stack([sample.image for sample in samples]),
        SoftLabels.of([sample.label for sample in samples]),
        [sample.kind for sample in samples],
        [sample.refusal for sample in samples if sample.refusal],
    )


def count_kinds(kinds: Sequence[Kind]) -> Counts:
    """Return how many slots were filled in each way."""
    return Counts(
        real=kinds.count(Kind.REAL),
        fresh=kinds.count(Kind.FRESH),
        cached=kinds.count(Kind.CACHED),
        composed=kinds.count(Kind.COMPOSED),
        starved=kinds.count(Kind.STARVED),
    )
