"""A recipe's images for others: its training images by digest, and the served ones with labels."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from online_aug.dataloader.image_sets import ImageSet
from online_aug.methods import METHODS, MethodContext, Source
from online_aug.records import Servable


@dataclass(frozen=True)
class BoundCompose:
    """Every request's own method, with one recipe's contexts; pickles to worker processes."""

    contexts: Mapping[str, MethodContext]
    """By the name of the method."""

    def __call__(
        self,
        source: Callable[[], UInt8[np.ndarray, "h w 3"]],
        generated: UInt8[np.ndarray, "h2 w2 3"],
        request: Servable,
        rng: np.random.Generator,
    ) -> tuple[UInt8[np.ndarray, "h3 w3 3"], Float[Tensor, " k"]]:
        """Image and soft label of one synthetic sample."""
        method, context = METHODS[request.method], self.contexts[request.method]
        return method.compose(source, generated, request, context, rng)


class SourceImages:
    """Training images by digest, as tensors."""

    def __init__(self, images: ImageSet, sources: Sequence[Source]) -> None:
        self._images = images
        self._places = {source.digest: place for place, source in enumerate(sources)}

    def by_digest(self, digest: str) -> UInt8[Tensor, "3 h w"]:
        """The image with this content.

        Raises:
            BadImageError: If it cannot be read any more.
        """
        return self.by_index(self._places[digest])

    def by_index(self, index: int) -> UInt8[Tensor, "3 h w"]:
        """The image at this place of the training set."""
        return torch.from_numpy(self._images.load(index).copy()).permute(2, 0, 1)
