"""How well a classifier does on a set of images."""

import os
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int, UInt8
from torch import Tensor, nn

from online_aug.config import DataConfig
from online_aug.dataloader.image_sets import ImageSet
from online_aug.dataloader.images import BadImageError
from online_aug.dataloader.transforms import EvalTransform, eval_transform, normalise
from online_aug.module_state import evaluation_mode
from online_aug.training.classifier import input_statistics

MAX_THREADS = 8
BATCHES_AHEAD = 2

Pixels = UInt8[Tensor, "3 h w"]


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
    with evaluation_mode(classifier), torch.inference_mode():
        for batch, labels in _batches(images, data, batch_size):
            truth = labels.to(device)
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


def _batches(
    images: ImageSet, data: DataConfig, batch_size: int
) -> Iterator[tuple[UInt8[Tensor, "b 3 h w"], Int[Tensor, " b"]]]:
    """The set in order. Threads, not processes: decoding releases Python's lock, no start-up."""
    loaded_as = partial(_load, images, eval_transform(data), data.on_bad_image == "skip")
    labels = images.labels
    starts = deque(range(0, len(images), batch_size))
    waiting: deque[list[tuple[int, Future[Pixels | None]]]] = deque()
    with ThreadPoolExecutor(min(MAX_THREADS, len(os.sched_getaffinity(0)))) as pool:
        while starts or waiting:
            while starts and len(waiting) <= BATCHES_AHEAD:
                start = starts.popleft()
                indices = range(start, min(start + batch_size, len(images)))
                waiting.append([(int(labels[i]), pool.submit(loaded_as, i)) for i in indices])
            done = [(label, future.result()) for label, future in waiting.popleft()]
            good = [(label, image) for label, image in done if image is not None]
            if good:
                yield torch.stack([image for _, image in good]), torch.tensor([k for k, _ in good])


def _load(images: ImageSet, transform: EvalTransform, skips: bool, index: int) -> Pixels | None:
    try:
        pixels = images.load(index)
    except BadImageError:
        if skips:
            return None
        raise
    image = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
    return transform(image)
