"""How well a classifier does on a set of images."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor, nn

from online_aug.config_data import DataConfig
from online_aug.dataloader.batches import ordered_batches
from online_aug.dataloader.image_sets import ImageSet
from online_aug.dataloader.transforms import eval_transform, normalise
from online_aug.module_state import evaluation_mode
from online_aug.training.classifier import input_statistics


@dataclass(frozen=True)
class Evaluation:
    """The figures of one pass over a set."""

    top1: float
    """Share of images whose class got the largest output, [0, 1]."""
    loss: float
    """Mean cross-entropy with the plain labels, nats."""
    per_class: Mapping[str, float]
    """Share recognised of each class, by name; a class without an image is left out."""
    images: int
    """How many were judged."""


def evaluate(
    classifier: nn.Module,
    images: ImageSet,
    data: DataConfig,
    device: torch.device | str,
    *,
    batch_size: int = 256,
) -> Evaluation:
    """Judge a classifier; its mode, its gradients and all random states stay as they are.

    Args:
        classifier: On `device`.
        images: What to judge it on.
        data: How images are prepared, and whether one that cannot be read is left out.
        device: Where to compute.
        batch_size: Images at a time; does not change the result.

    Raises:
        BadImageError: If an image cannot be read and `data.on_bad_image` is not `skip`.
        ValueError: If there is no image to judge.
    """
    counts = np.zeros((2, len(images.class_names)), dtype=np.int64)
    losses = 0.0
    mean, std = input_statistics(classifier)
    labels = torch.from_numpy(np.asarray(images.labels))
    with evaluation_mode(classifier), torch.inference_mode():
        for batch, indices in ordered_batches(
            images, eval_transform(data), batch_size, skips_bad_images=data.on_bad_image == "skip"
        ):
            truth = labels[indices].to(device)
            logits = classifier(normalise(batch.to(device), mean, std)).float()
            losses += float(F.cross_entropy(logits, truth, reduction="sum"))
            counts += _right_and_all(logits, truth)
    right, seen = counts
    if not seen.sum():
        raise ValueError("images must hold at least one that can be read, got none")
    return Evaluation(
        top1=float(right.sum() / seen.sum()),
        loss=losses / int(seen.sum()),
        per_class={
            name: float(hits / number)
            for name, hits, number in zip(images.class_names, right, seen, strict=True)
            if number
        },
        images=int(seen.sum()),
    )


def _right_and_all(logits: Tensor, labels: Int[Tensor, " b"]) -> Int[np.ndarray, "2 k"]:
    classes = logits.shape[1]
    right = labels[logits.argmax(1) == labels]
    return np.stack([found.bincount(minlength=classes).cpu().numpy() for found in (right, labels)])
