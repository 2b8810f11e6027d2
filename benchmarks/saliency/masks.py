"""Compare saliency masks with the true masks of pocket birds.

    python benchmarks/saliency/masks.py configs/pocket_birds_sgd_mix.yaml [key=value ...]

Trains the experiment's classifier on real images alone and stops at some ages to cut every fourth
training image by Otsu's threshold of its maps, at several input sizes. Prints the mean
intersection over union with the true mask, the share of sources whose object is covered to 80 %,
the share of the image that is cut out (a large mask covers more), and the share of sources whose
own mask is so small that SGD-Mix refuses them.
"""

import dataclasses
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from online_aug.classifier.evaluation import evaluate
from online_aug.classifier.model import build_classifier
from online_aug.cli.main import parse_command, run_main
from online_aug.data.image_sets import FolderSet
from online_aug.data.sources import load_splits
from online_aug.distributed.devices import DevicePlan, plan_devices
from online_aug.distributed.world import rank_device, start_distributed
from online_aug.errors import UserError
from online_aug.experiment.experiment import Experiment
from online_aug.experiment.foregrounds import saliency_maps
from online_aug.experiment.saliency import Viewer
from online_aug.experiment.saliency_models import Look, gaze_of
from online_aug.saliency import otsu_masks, spectral_residual, upscaled
from online_aug.training.build_loader import build_loader
from online_aug.training.engine import TrainingEngine

AGES = (1, 5, 15, 30)
SCALES = (1, 2, 4)
COVERED = 0.8
EVERY = 4
HEADS = ("maps", "side, px", "epochs", "top1", "mean IoU", "covered to 80 %", "cut out", "refused")


class Teacher(NamedTuple):
    """A classifier at some epoch, and the size at which it looks at images."""

    epochs: int
    top1: float
    """Top-1 accuracy on validation images."""
    look: Look


class Judged(NamedTuple):
    """Agreement of masks with the true ones, means over images."""

    iou: float
    covered: float
    cut_out: float
    refused: float


def main(argv: Sequence[str]) -> None:
    """Print one row for each method, size and age."""
    command = parse_command(argv, prog="python benchmarks/saliency/masks.py", summary="Judge maps.")
    config = command.load_config()
    if config.data.source != "pocket_birds":
        raise UserError(
            f"data.source must be pocket_birds, which has true masks, got {config.data.source}"
        )
    mixing = config.mixing.model_copy(update={"synthetic_probability": 0.0})
    config = config.model_copy(update={"mixing": mixing})
    devices = plan_devices(config.devices)
    experiment = Experiment(config, load_splits(config.data), devices.train[0])
    judge = Judge(experiment)
    side = config.data.image_size
    print(f"| {' | '.join(HEADS)} |")
    print("|---" * len(HEADS) + "|")
    _print_row("whole image", side, None, judge.judge(torch.ones_like(judge.truth)))
    _print_row("spectral residual", side, None, judge.look(_spectral, side))
    for teacher in _teachers(experiment, devices):
        for scale in SCALES:
            _print_row("Grad-CAM", scale * side, teacher, judge.look(teacher.look, scale * side))


class Judge:
    """Return every fourth training image with its true mask."""

    def __init__(self, experiment: Experiment) -> None:
        self._images = _some(experiment.splits.train)
        self._smallest = experiment.config.methods[0].min_source_share
        self.truth = _true_masks(self._images)

    def look(self, look: Look, side: int) -> Judged:
        """Evaluate the masks of some maps at the resolution of the true masks."""
        viewer, found = Viewer(look, side), {}
        for some in saliency_maps(self._images, viewer, skips_bad_images=False, is_shown=False):
            found |= some
        maps = torch.stack([torch.from_numpy(found[place]) for place in range(len(found))])
        height, width = self.truth.shape[1:]
        return self.judge(otsu_masks(upscaled(maps, (height, width))))

    def judge(self, masks: Tensor) -> Judged:
        """Evaluate boolean masks, one for each image."""
        both, either = (masks & self.truth).sum((1, 2)), (masks | self.truth).sum((1, 2))
        shares = masks.float().mean((1, 2))
        return Judged(
            iou=float((both / either).mean()),
            covered=float((both / self.truth.sum((1, 2)) >= COVERED).float().mean()),
            cut_out=float(shares.mean()),
            refused=float((shares < self._smallest).float().mean()),
        )


def _print_row(maps: str, side: int, teacher: Teacher | None, judged: Judged) -> None:
    age = ("-", "-") if teacher is None else (str(teacher.epochs), f"{teacher.top1:.1%}")
    shares = (f"{share:.1%}" for share in judged[1:])
    print(f"| {' | '.join([maps, str(side), *age, f'{judged.iou:.3f}', *shares])} |")
    sys.stdout.flush()


def _spectral(images: Tensor, labels: Tensor) -> Tensor:
    return spectral_residual(images)


def _teachers(experiment: Experiment, devices: DevicePlan) -> Iterator[Teacher]:
    """Yield the classifier at each age."""
    config = experiment.config
    world = start_distributed(rank_device(devices.train))
    classes = len(experiment.splits.train.class_names)
    classifier = build_classifier(config.classifier, classes, image_size=config.data.image_size)
    with (
        tempfile.TemporaryDirectory() as folder,
        build_loader(experiment, devices, world, Path(folder)) as loader,
    ):
        engine = TrainingEngine(classifier, config, world, steps_per_epoch=len(loader))
        for epoch in range(config.run.epochs):
            loader.set_epoch(epoch)
            for batch in loader:
                engine.train_step(batch)
            if epoch + 1 in AGES:
                model = engine.evaluated_model()
                top1 = evaluate(model, experiment.splits.val, config.data, world.device).top1
                yield Teacher(epoch + 1, top1, gaze_of(model, world.device))


def _some(images: FolderSet) -> FolderSet:
    return dataclasses.replace(images, files=images.files[::EVERY], labels=images.labels[::EVERY])


def _true_masks(images: FolderSet) -> Tensor:
    paths = [images.path(index) for index in range(len(images))]
    roots = [path.parents[2] / "masks" / path.relative_to(path.parents[2]) for path in paths]
    return torch.from_numpy(np.stack([np.asarray(Image.open(path)) > 127 for path in roots]))


if __name__ == "__main__":
    run_main(main)
