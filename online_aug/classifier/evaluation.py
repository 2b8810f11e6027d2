"""Evaluate a classifier on a set of images: overall, by class, by group and by class size."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn

from online_aug.classifier.model import input_statistics
from online_aug.data.image_sets import Groups, ImageSet, groups_of, ordered_batches
from online_aug.data.settings import DataConfig
from online_aug.data.transforms import eval_transform, normalise
from online_aug.seeding import evaluation_mode

_BEST = 5
_SHOTS = ("few", "medium", "many")


@dataclass(frozen=True)
class Evaluation:
    """Results on one set of images; parts without images are left out."""

    top1: float
    """Share of images whose class has the largest output, [0, 1]."""
    top5: float
    """Share of images whose class is among the five largest outputs, [0, 1]."""
    loss: float
    """Mean cross-entropy with the true labels, nats."""
    per_class: Mapping[str, float]
    """Top-1 accuracy of each class, by name."""
    per_group: Mapping[str, float]
    """Top-1 accuracy of each group, by name; empty without groups."""
    worst_group: float | None
    """Smallest accuracy of a group; None without groups."""
    per_shots: Mapping[str, float]
    """Top-1 accuracy on classes with few, medium and many training images; empty if the training
    set is not a long tail."""
    confusion: Mapping[str, Mapping[str, int]]
    """How many images of each class were taken for each class, by name; zeros are left out."""
    images: int
    """Number of images evaluated."""


def evaluate(
    classifier: nn.Module,
    images: ImageSet,
    data: DataConfig,
    device: torch.device | str,
    *,
    batch_size: int = 256,
    train_labels: Int[np.ndarray, " n"] | None = None,
) -> Evaluation:
    """Evaluate a classifier; its mode, gradients and all random states stay as they are.

    Args:
        classifier: Classifier on `device`.
        images: Images to evaluate it on.
        data: How images are transformed, and whether unreadable ones are left out.
        device: Where to compute.
        batch_size: Images at a time; does not change the result.
        train_labels: Labels of the training images, for the accuracy by class size.

    Raises:
        BadImageError: If an image cannot be read and `data.on_bad_image` is not `skip`.
        ValueError: If there is no readable image.
    """
    seen, taken_for, is_among_best, loss = _predict(classifier, images, data, device, batch_size)
    is_best = taken_for == np.asarray(images.labels)[seen]
    groups, shots = groups_of(images), _shots_of(images, train_labels, data)
    per_group = _accuracies(groups, seen, is_best)
    return Evaluation(
        top1=float(is_best.mean()),
        top5=float(is_among_best.mean()),
        loss=loss,
        per_class=_accuracies(Groups(images.class_names, images.labels), seen, is_best),
        per_group=per_group,
        worst_group=min(per_group.values(), default=None),
        per_shots=_accuracies(shots, seen, is_best),
        confusion=_confusion(images, seen, taken_for),
        images=len(seen),
    )


def _predict(
    classifier: nn.Module,
    images: ImageSet,
    data: DataConfig,
    device: torch.device | str,
    batch_size: int,
) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"], Bool[np.ndarray, " n"], float]:
    indices_seen, taken_for, is_among_best = list[Tensor](), list[Tensor](), list[Tensor]()
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
            indices_seen.append(indices)
            taken_for.append(logits.argmax(1).cpu())
            is_among_best.append(_is_among_best(logits, truth).cpu())
    if not indices_seen:
        raise ValueError("images must hold at least one that can be read, got none")
    seen = torch.cat(indices_seen).numpy()
    classes, among_best = torch.cat(taken_for).numpy(), torch.cat(is_among_best).numpy()
    return seen, classes, among_best, losses / len(seen)


def log_probabilities(
    classifier: nn.Module,
    pictures: Sequence[UInt8[np.ndarray, "h w 3"]],
    data: DataConfig,
    device: torch.device | str,
) -> Float[np.ndarray, "n k"]:
    """Return the log-probability of every class for pictures, shown as those of the test split."""
    mean, std = input_statistics(classifier)
    view = eval_transform(data)
    shown = [view(torch.from_numpy(picture.copy()).permute(2, 0, 1)) for picture in pictures]
    with evaluation_mode(classifier), torch.inference_mode():
        logits = classifier(normalise(torch.stack(shown).to(device), mean, std)).float()
    found: Float[np.ndarray, "n k"] = logits.log_softmax(1).cpu().numpy()
    return found


def _is_among_best(logits: Tensor, labels: Tensor) -> Tensor:
    best = logits.topk(min(_BEST, logits.shape[1]), dim=1).indices
    return (best == labels[:, None]).any(1)


def _accuracies(
    parts: Groups | None, indices: Int[np.ndarray, " n"], right: Bool[np.ndarray, " n"]
) -> dict[str, float]:
    if parts is None:
        return {}
    numbers, count = parts.numbers[indices], len(parts.names)
    total = np.bincount(numbers, minlength=count)
    hits = np.bincount(numbers[right], minlength=count)
    triples = zip(parts.names, hits, total, strict=True)
    return {name: float(hit / number) for name, hit, number in triples if number}


def _confusion(
    images: ImageSet, indices: Int[np.ndarray, " n"], taken_for: Int[np.ndarray, " n"]
) -> dict[str, dict[str, int]]:
    names = images.class_names
    cells = np.stack([np.asarray(images.labels)[indices], taken_for], axis=1)
    found: dict[str, dict[str, int]] = {}
    for (true, taken), count in zip(*np.unique(cells, axis=0, return_counts=True), strict=True):
        found.setdefault(names[true], {})[names[taken]] = int(count)
    return found


def _shots_of(
    images: ImageSet, train_labels: Int[np.ndarray, " n"] | None, data: DataConfig
) -> Groups | None:
    if train_labels is None or data.imbalance_factor is None:
        return None
    sizes = np.bincount(train_labels, minlength=len(images.class_names))
    many, few = data.many_few
    of_class = np.select([sizes > many, sizes < few], [2, 0], 1)
    return Groups(_SHOTS, of_class[images.labels])
