"""Small configurations, batches and trainings for the tests, and for the ranks they start."""

import torch

from online_aug.config import Config
from online_aug.records import Batch, Served
from online_aug.training.classifier import build_classifier
from online_aug.training.distributed import total
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
    return Batch(images=images, labels=soft, served=Served(real=size))


def train_and_resume(world, folder):
    """Mean loss over the ranks of two steps, a checkpoint, and two more steps of a new engine."""
    # No batch norm, whose statistics are each rank's own.
    config = make_config(classifier={"name": "test_convnext"}, optim={"lr": 0.02})
    losses = []
    for expected in (None, {"rank": world.rank}):
        classifier = build_classifier(config.classifier, CLASSES)
        engine = TrainingEngine(classifier, config, world, steps_per_epoch=2)
        assert engine.load(folder) == expected
        for _ in range(2):
            loss = engine.train_step(_share(make_batch(engine.step), world))
            losses.append(total(world, [float(loss)])[0] / world.world_size)
        engine.save(folder, {"rank": world.rank})
    return losses


def _share(batch, world):
    parts = (part.chunk(world.world_size)[world.rank] for part in (batch.images, batch.labels))
    images, labels = parts
    return Batch(images=images, labels=labels, served=batch.served)
