"""Whether a network can be trained on images of a size and batches of a size, found out by trying.

A step of two images is computed on the meta device, which knows shapes and no values, so that it
takes about a second whatever the network. A network that looks values up by index may still fail
where the shapes agree, so it makes one more forward pass on the CPU.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from online_aug.classifier.model import (
    REFUSALS,
    build_classifier,
    check_buildable,
    create,
    load_checkpoint,
    prepare_training,
)
from online_aug.config.training import ClassifierConfig
from online_aug.errors import UserError, first_line
from online_aug.seeding import torch_global_state

_FAILURES = (*REFUSALS, LookupError, NotImplementedError)
_LOOKUPS = ("index", "embedding", "gather", "index_select", "take_along_dim")
"""Operators whose arguments can be wrong though their shapes are right."""
_STRIDES = (32, 16, 14, 8, 7, 4)
"""Sizes that are multiples of one of these are what networks are made for."""
_FARTHEST = 2
"""How many times larger or smaller a suggested size may be."""


def check_fit(
    config: ClassifierConfig, num_classes: int, image_size: int, batch_size: int = 2
) -> list[str]:
    """Raise if the weights are of another network, or the network cannot take the images.

    Args:
        config: Name and weights of the network.
        num_classes: Outputs of the head.
        image_size: Side of the images, px.
        batch_size: Images that a rank computes at a time.

    Returns:
        Lines that say which weights are not taken as they are.

    Raises:
        UserError: If the weights, the size of the images or that of the batches do not fit.
    """
    bare = config.model_copy(update={"pretrained": False, "checkpoint": None})
    trial = _Trial(bare, num_classes)
    if ":" not in config.name:  # else its settings lie elsewhere
        trial.check(image_size, batch_size)
    if config.checkpoint is None:
        return []
    return load_checkpoint(build_classifier(bare, num_classes, image_size=image_size), config)


class _Trial(NamedTuple):
    """Steps of training with a network, to see whether they fail."""

    config: ClassifierConfig
    num_classes: int

    def check(self, image_size: int, batch_size: int) -> None:
        """Raise `UserError` if the network cannot take such images or such batches."""
        name = self.config.name
        if problem := self.problem(image_size, 2):
            check_buildable(self.config, self.num_classes)
            raise UserError(
                f"data.image_size must be a size that {name} can take, got {image_size}: "
                f"{problem}{self.sizes_near(image_size)}"
            )
        if batch_size == 1 and (problem := self.problem(image_size, 1)):
            raise UserError(
                "optim.batch_size, divided by the training devices and by optim.accumulation, "
                f"must be at least 2 for {name}, got 1: {problem}"
            )

    def problem(self, image_size: int, batch_size: int) -> str | None:
        """Return why a step fails, in a library's words; None if it does not."""
        with _LookupNoter() as noter:
            failure = self._failure("meta", image_size, batch_size)
        if failure is None and not noter.has_seen:
            return None
        # What fails on the meta device may be the meta device's own fault.
        return self._failure("cpu", image_size, batch_size, with_gradient=failure is not None)

    def sizes_near(self, image_size: int) -> str:
        """Name the nearest smaller and larger size that work; empty if none is near."""
        found = [
            next((str(size) for size in sizes if self._works(size)), None)
            for sizes in (_multiples(image_size, -1), _multiples(image_size, 1))
        ]
        works = " and ".join(size for size in found if size)
        return f"; sizes near it that work: {works}" if works else ""

    def _works(self, image_size: int) -> bool:
        return not self._failure("meta", image_size, 2) and not self.problem(image_size, 2)

    def _failure(
        self, device: str, image_size: int, batch_size: int, *, with_gradient: bool = True
    ) -> str | None:
        try:
            with torch.device(device), torch_global_state(0):
                network = create(self.config, self.num_classes, image_size)
                prepare_training(network, self.config)
                with torch.set_grad_enabled(with_gradient):
                    logits = network(torch.zeros(batch_size, 3, image_size, image_size))
                    if with_gradient:
                        logits.sum().backward()
        except _FAILURES as error:
            return first_line(error)
        return None


def _multiples(image_size: int, direction: int) -> Iterator[int]:
    """Yield the next size in a direction for each stride, the coarsest stride first."""
    seen = set()
    for stride in _STRIDES:
        size = (image_size // stride + (direction > 0)) * stride
        size -= stride if size == image_size else 0
        if size not in seen and image_size / _FARTHEST <= size <= image_size * _FARTHEST:
            seen.add(size)
            yield size


class _LookupNoter(TorchDispatchMode):
    """Notes whether values are looked up by index, which the meta device cannot check."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.has_seen = False

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.has_seen |= operator.overloadpacket.__name__ in _LOOKUPS
        return operator(*args, **(kwargs or {}))
