"""Predict the classes of image files that have no labels."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from online_aug.classifier.hub_format import HubModel
from online_aug.classifier.model import input_statistics
from online_aug.data.image_sets import FolderSet, ordered_batches
from online_aug.data.images import BadImageError
from online_aug.data.transforms import EvalTransform, normalise
from online_aug.seeding import evaluation_mode

_AT_A_TIME = 64


@dataclass(frozen=True)
class Prediction:
    """The likeliest classes of one image, the likeliest first."""

    image: str
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]
    """Of each of these classes, [0, 1]."""


def predict(
    model: HubModel,
    images: FolderSet,
    device: torch.device | str,
    *,
    top: int,
    on_bad_image: Callable[[BadImageError], None],
) -> Iterator[Prediction]:
    """Yield a prediction for each readable image, in order; the network moves to the device.

    Args:
        model: The classifier.
        images: The files; their labels are not read.
        device: Where to compute.
        top: How many classes to name; more than there are is all.
        on_bad_image: Called with each file that cannot be read, which is then left out.
    """
    network = model.network.to(device)
    mean, std = input_statistics(network)
    count = min(top, len(model.class_names))
    batches = ordered_batches(
        images,
        EvalTransform(frame=model.frame),
        _AT_A_TIME,
        skips_bad_images=True,
        on_bad_image=on_bad_image,
    )
    with evaluation_mode(network), torch.inference_mode():
        for batch, indices in batches:
            logits = network(normalise(batch.to(device), mean, std)).float()
            found = logits.softmax(1).topk(count, dim=1)
            rows = zip(indices.tolist(), found.indices.tolist(), found.values.tolist(), strict=True)
            for index, labels, shares in rows:
                names = tuple(model.class_names[label] for label in labels)
                yield Prediction(images.files[index], names, tuple(shares))


def unlabelled(files: Sequence[str]) -> FolderSet:
    """Return files as a set of images whose labels mean nothing; paths are kept as they are."""
    labels = np.zeros(len(files), np.int64)
    return FolderSet(root=Path(), files=tuple(files), class_names=("",), labels=labels)
