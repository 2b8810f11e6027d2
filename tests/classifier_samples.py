"""Small configurations, batches and trainings for the tests, and for the ranks they start."""

import torch

from online_aug.classifier.model import build_classifier
from online_aug.config import Config
from online_aug.distributed.world import total
from online_aug.loader.batch import Batch
from online_aug.request import Counts
from online_aug.training.engine import TrainingEngine

CLASSES = 3


def make_config(**sections):
    """A configuration of a tiny classifier; sections as in the YAML file."""
    sections["classifier"] = {"name": "test_resnet"} | sections.get("classifier", {})
    sections["optim"] = {"batch_size": 8} | sections.get("optim", {})
    return Config.model_validate(sections)


def make_batch(seed, size=8):
    """Noise whose brightness tells the class, so that there is something to learn."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (size,), generator=rng)
    noise = torch.randint(60, (size, 3, 32, 32), generator=rng)
    images = (noise + 90 * labels.view(-1, 1, 1, 1)).to(torch.uint8)
    soft = torch.nn.functional.one_hot(labels, CLASSES).float()
    return Batch.of(images, soft, served=Counts(real=size))


def train_and_resume(world, folder):
    """Mean loss over the ranks of two steps, a checkpoint, and two more steps of a new engine."""
    losses = []
    for expected in (None, {"rank": world.rank}):
        engine = divided_engine(world, 0, name="sgd")
        assert engine.load(folder) == expected
        losses += mean_losses(engine, world)
        engine.save(folder, {"rank": world.rank})
    return losses


def train_and_skip(world, stage):
    """Mean loss over the ranks of steps of which the third is bad on the last rank alone, if any.

    None stands for a step that was skipped.
    """
    engine = divided_engine(world, stage, skip_non_finite=True, accumulation=2)
    losses = []
    for number in range(5):
        batch = _share(make_batch(number), world)
        if number == 2 and world.rank == world.world_size - 1:
            batch.labels[-1] = float("nan")
        loss = engine.train_step(batch)
        mean = total(world, [float(loss)])[0] / world.world_size
        losses.append(None if engine.guard.was_skipped else mean)
    return losses


def divided_engine(world, stage, name="adamw", **optim):
    """An engine of a network without batch norm, whose statistics are each rank's own."""
    settings = {"zero_optimization": {"stage": stage}}
    config = make_config(
        classifier={"name": "test_convnext", "deepspeed": settings},
        optim={"lr": 0.02, "name": name, "weight_decay": 0.1, **optim},
    )
    classifier = build_classifier(config.classifier, CLASSES)
    return TrainingEngine(classifier, config, world, steps_per_epoch=2)


def mean_losses(engine, world):
    """Loss over all ranks of the next two steps."""
    losses = []
    for _ in range(2):
        loss = engine.train_step(_share(make_batch(engine.step), world))
        losses.append(total(world, [float(loss)])[0] / world.world_size)
    return losses


def _share(batch, world):
    parts = (part.chunk(world.world_size)[world.rank] for part in (batch.images, batch.labels))
    images, labels = parts
    return Batch.of(images, labels, served=batch.served)
