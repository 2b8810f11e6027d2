"""Compare the foregrounds of pocket birds with their true masks, and tell what those maps cost.

    python -m benchmarks.saliency.masks [configs/pocket_birds_sgd_mix.yaml key=value ...]

Maps of the generator, of the spectral residual and of Grad-CAM are cut by Otsu's threshold and by
GrabCut. Grad-CAM is that of the experiment's classifier, trained on real images alone, at several
input sizes. A blob in the middle of the image tells what knowing the usual place is worth. Settings
were tuned on every fourth training image; the others are those to report. Columns: mean
intersection over union with the true mask, share of sources whose object is covered to 80 %, share
of the image that is cut out (a large mask covers more), and share of sources whose own mask is so
small that SGD-Mix refuses them.

Then the time of making map and mask of a source, and that of generating an image as configured, in
seconds of one core. Low strengths make generating cheap: `method.strength=0.7` tells another ratio.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from online_aug.classifier.evaluation import evaluate
from online_aug.classifier.model import build_classifier
from online_aug.cli.main import parse_command, run_main
from online_aug.config import Config
from online_aug.data.image_sets import FolderSet
from online_aug.data.sources import load_splits
from online_aug.data.transforms import EvalTransform, Frame
from online_aug.diffusion.compatibility import settle
from online_aug.distributed.devices import DevicePlan, plan_devices
from online_aug.distributed.world import rank_device, start_distributed
from online_aug.errors import UserError
from online_aug.experiment.experiment import Experiment
from online_aug.experiment.foregrounds import cut_out, ensure_saliency, saliency_maps
from online_aug.experiment.saliency import Viewer, viewer_of
from online_aug.experiment.saliency_models import gaze_of
from online_aug.producer.work import load_generator
from online_aug.saliency import otsu_masks, spectral_residual, upscaled
from online_aug.saliency.masks import decode_mask, resized_masks
from online_aug.training.build_loader import build_loader
from online_aug.training.engine import TrainingEngine

SCALES = (1, 2, 4)
COVERED = 0.8
EVERY = 4
TIMED = 48
TURNS = 3
BLOB = 0.2
"""Standard deviation of the blob, as a share of the side."""
HEADS = ("maps", "mask", "images", "mean IoU", "covered to 80 %", "cut out", "refused")


class Judged(NamedTuple):
    """Agreement of masks with the true ones, means over images."""

    iou: float
    covered: float
    cut_out: float
    refused: float


def main(argv: Sequence[str]) -> None:
    """Print the table of the masks, then what they cost."""
    argv = argv or ["configs/pocket_birds_sgd_mix.yaml"]
    command = parse_command(argv, prog="python -m benchmarks.saliency.masks", summary="Judge maps.")
    with tempfile.TemporaryDirectory() as folder:
        experiment, devices = _experiment(command.load_config(), Path(folder))
        judge = Judge(experiment)
        print(f"| {' | '.join(HEADS)} |")
        print("|---" * len(HEADS) + "|")
        judge.print_rows("a blob in the middle", _blob(judge.truth.shape[-1]))
        judge.print_rows("diffusion", judge.maps(viewer_of(experiment)))
        side = experiment.config.data.image_size
        spectral = Viewer(lambda images, _: spectral_residual(images), side)
        judge.print_rows("spectral residual", judge.maps(spectral))
        classifier, top1 = _train(experiment, devices, Path(folder))
        for scale in SCALES:
            name = f"Grad-CAM at {scale * side} px, top1 {top1:.1%}"
            judge.print_rows(name, judge.maps(Viewer(gaze_of(classifier, "cpu"), scale * side)))
        _print_cost(experiment)


def _experiment(config: Config, folder: Path) -> tuple[Experiment, DevicePlan]:
    if config.data.source != "pocket_birds":
        raise UserError(
            f"data.source must be pocket_birds, which has true masks, got {config.data.source}"
        )
    changed = {
        "finetune": config.finetune.model_copy(update={"enabled": False}),
        "cache": config.cache.model_copy(update={"path": folder / "cache"}),
        "saliency": config.saliency.model_copy(update={"method": "diffusion"}),
    }
    config = settle(config.model_copy(update=changed))
    devices = plan_devices(config.devices)
    return Experiment(config, load_splits(config.data), devices.generator), devices


class Judge:
    """The training images with their true masks."""

    def __init__(self, experiment: Experiment) -> None:
        images = experiment.splits.train
        assert isinstance(images, FolderSet)
        self._images = images
        self._smallest = experiment.config.methods[0].min_source_share
        self.pictures = _to_cut(experiment, range(len(images)))
        self.truth = _true_masks(images)
        tuned = np.arange(len(images)) % EVERY == 0
        self._groups: Mapping[str, np.ndarray] = {"every fourth": tuned, "the others": ~tuned}

    def maps(self, viewer: Viewer) -> Tensor:
        """Return the map of each image."""
        found = {}
        shown = sys.stdout.isatty()
        for some in saliency_maps(self._images, viewer, skips_bad_images=False, is_shown=shown):
            found |= some
        return torch.stack([torch.from_numpy(found[place]) for place in range(len(found))])

    def print_rows(self, name: str, maps: Tensor) -> None:
        """Cut the maps by either rule and print how well the masks agree with the true ones."""
        maps = maps.expand(len(self.truth), -1, -1)
        height, width = self.truth.shape[1:]
        cut = [cut_out(*pair) for pair in zip(self.pictures, maps.numpy(), strict=True)]
        by_rule = {
            "otsu": otsu_masks(upscaled(maps, (height, width))).numpy(),
            "grabcut": resized_masks(np.stack([decode_mask(content) for content in cut]), height),
        }
        for rule, masks in by_rule.items():
            for group, chosen in self._groups.items():
                judged = self._judge(masks[chosen], self.truth[chosen])
                shares = (f"{share:.1%}" for share in judged[1:])
                print(f"| {' | '.join([name, rule, group, f'{judged.iou:.3f}', *shares])} |")
        sys.stdout.flush()

    def _judge(self, masks: np.ndarray, truth: np.ndarray) -> Judged:
        both, either = (masks & truth).sum((1, 2)), (masks | truth).sum((1, 2))
        shares = masks.mean((1, 2))
        return Judged(
            iou=float((both / either).mean()),
            covered=float((both / truth.sum((1, 2)) >= COVERED).mean()),
            cut_out=float(shares.mean()),
            refused=float((shares < self._smallest).mean()),
        )


def _blob(side: int) -> Tensor:
    places = (torch.arange(side) + 0.5) / side - 0.5
    row = torch.exp(-(places**2) / (2 * BLOB**2))
    return (row[:, None] * row)[None]


def _true_masks(images: FolderSet) -> np.ndarray:
    paths = [images.path(index) for index in range(len(images))]
    roots = [path.parents[2] / "masks" / path.relative_to(path.parents[2]) for path in paths]
    return np.stack([np.asarray(Image.open(path)) > 127 for path in roots])


def _train(
    experiment: Experiment, devices: DevicePlan, folder: Path
) -> tuple[torch.nn.Module, float]:
    """Train the experiment's classifier on real images; return it with its validation top-1."""
    mixing = experiment.config.mixing.model_copy(update={"synthetic_probability": 0.0})
    config = experiment.config.model_copy(update={"mixing": mixing})
    experiment = Experiment(config, experiment.splits, experiment.device)
    world = start_distributed(rank_device(devices.train))
    classes = len(experiment.splits.train.class_names)
    classifier = build_classifier(config.classifier, classes, image_size=config.data.image_size)
    with build_loader(experiment, devices, world, folder) as loader:
        engine = TrainingEngine(classifier, config, world, steps_per_epoch=len(loader))
        for epoch in range(config.run.epochs):
            loader.set_epoch(epoch)
            for batch in loader:
                engine.train_step(batch)
        model = engine.evaluated_model()
        return model, evaluate(model, experiment.splits.val, config.data, world.device).top1


def _print_cost(experiment: Experiment) -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    ensure_saliency(experiment)
    generator, viewer = load_generator(experiment), viewer_of(experiment)
    requests = experiment.plan[:TIMED]
    places = [experiment.data.places[request.source_digest] for request in requests]
    pictures = np.stack([experiment.splits.train.load(place) for place in places])
    images = torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous()
    labels = torch.tensor([request.source_label for request in requests])

    def make_masks() -> None:
        larger = _to_cut(experiment, places)
        for pair in zip(larger, viewer.look(images, labels).cpu().numpy(), strict=True):
            cut_out(*pair)

    sides = {
        "map and mask of a source": make_masks,
        "generating an image": lambda: generator.generate(requests, images),
    }
    seconds = {name: _core_seconds(side) / TIMED for name, side in sides.items()}
    generator.close()
    print()
    for name, spent in seconds.items():
        print(f"{name}: {spent * 1e3:.1f} ms")
    made, cost = seconds.values()
    print(f"a source's mask costs {made / cost:.2f} of an image")


def _to_cut(experiment: Experiment, places: Sequence[int]) -> np.ndarray:
    """Return training images at the side on which GrabCut works."""
    enlarged = EvalTransform(frame=Frame(size=experiment.saliency.cut_size))
    images = (torch.from_numpy(experiment.splits.train.load(place)) for place in places)
    return np.stack([enlarged(image.permute(2, 0, 1)).permute(1, 2, 0).numpy() for image in images])


def _core_seconds(side: Callable[[], object]) -> float:
    """Return the least seconds of processor time of some turns, after one that is not counted."""
    spent = []
    for _ in range(1 + TURNS):
        started = time.process_time()
        side()
        spent.append(time.process_time() - started)
    return min(spent[1:])


if __name__ == "__main__":
    run_main(main)
