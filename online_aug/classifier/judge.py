"""Training of a small classifier on the real images alone, which then judges generated ones.

It is a fixed recipe, whatever `optim` says: a judge is part of every request, so another learning
rate of the run must not ask for other images.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int, UInt8
from torch import Tensor, nn

from online_aug.classifier.model import build_classifier, input_statistics, prepare_training
from online_aug.config.training import ClassifierConfig
from online_aug.cores import usable_cores
from online_aug.data.image_sets import ImageSet
from online_aug.data.transforms import TrainTransform, normalise
from online_aug.seeding import numpy_rng, seed_of, torch_global_state, torch_rng

BATCH_SIZE = 64
"""Images in a step; the classes take turns, so that a rare one is seen as often as any other."""
RATE, RATE_OF_PRETRAINED = 2e-3, 2e-4
"""Highest learning rate of AdamW, from new weights and from trained ones."""
WEIGHT_DECAY = 1e-2
_MOST_THREADS = 8


@dataclass(frozen=True, kw_only=True)
class JudgeRecipe:
    """All but the images that decides the weights of a judge."""

    settings: ClassifierConfig
    """Name of the network, and the weights it starts from."""
    transform: TrainTransform
    steps: int
    seed: int = 0


def train_judge(
    recipe: JudgeRecipe,
    images: ImageSet,
    device: torch.device | str,
    report: Callable[[float], object] = lambda loss: None,
) -> nn.Module:
    """Train a classifier on real images and return it in evaluation mode.

    Args:
        recipe: How to train.
        images: The images, all of which are shown to it.
        device: Where to compute.
        report: Called after each step with its loss.

    Raises:
        UserError: If the network cannot be built or an image cannot be read.
    """
    settings, side = recipe.settings, recipe.transform.frame.size
    device = torch.device(device)
    judge = build_classifier(
        settings, len(images.class_names), image_size=side, seed=recipe.seed
    ).to(device)
    prepare_training(judge, settings)
    mean, std = input_statistics(judge)
    is_trained = settings.pretrained or settings.checkpoint is not None
    rate = RATE_OF_PRETRAINED if is_trained else RATE
    weights = [weight for weight in judge.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=rate, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=recipe.steps + 1)
    labels = torch.from_numpy(np.asarray(images.labels))
    threads = min(_MOST_THREADS, usable_cores())
    with ThreadPoolExecutor(threads) as pool, torch_global_state(recipe.seed, device):
        for step in range(recipe.steps):
            chosen = _turn(np.asarray(images.labels), recipe.seed, step)
            batch = _shown(images, recipe, chosen, step, pool)
            logits = judge(normalise(batch.to(device), mean, std)).float()
            loss = F.cross_entropy(logits, labels[chosen].to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            report(loss.item())
    return judge.eval()


def _turn(labels: Int[np.ndarray, " n"], seed: int, step: int) -> Int[np.ndarray, " b"]:
    rng = numpy_rng("judge", seed, step)
    classes = np.unique(labels)
    turns = (step * BATCH_SIZE + np.arange(BATCH_SIZE)) % len(classes)
    order = numpy_rng("judge classes", seed).permutation(classes)
    return np.array([rng.choice(np.flatnonzero(labels == label)) for label in order[turns]])


def _shown(
    images: ImageSet,
    recipe: JudgeRecipe,
    chosen: Int[np.ndarray, " b"],
    step: int,
    pool: ThreadPoolExecutor,
) -> UInt8[Tensor, "b 3 s s"]:
    def load(place: int, index: int) -> Tensor:
        rng = torch_rng(seed_of("judge", recipe.seed, step, place))
        pixels = np.ascontiguousarray(images.load(index).transpose(2, 0, 1))
        return recipe.transform(torch.from_numpy(pixels), rng)

    return torch.stack(list(pool.map(load, range(len(chosen)), chosen.tolist())))
