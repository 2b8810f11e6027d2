"""Compare the loader of a loop of one's own with that of train.py, on a warm cache.

    python -m benchmarks.data.own_loop [--images 256] [--workers 0] [--turns 7]

Both serve JPEGs of 500 x 375 px at 224 px; every second slot is an image from the cache. They take
turns in one process: `build_loader` as train.py calls it, with its own epochs; `open_loader` in a
plain loop that unpacks the batch; the same with losses reported after every step; and one around a
caller's own data set, which is read from its copy. The last lines are how many times as fast as
train.py's each one is.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch

from benchmarks._timing import faster, in_turns, rate
from benchmarks.data.loader_speed import BATCH_SIZE, CLASSES, DATA, write_images
from cache import Entry
from online_aug import Config, Experiment, OnlineAugLoader, open_loader
from online_aug.config.loading import resolved_yaml
from online_aug.data.folders import folder_splits
from online_aug.data.map_style.copied import copy_of
from online_aug.data.sources import load_splits
from online_aug.diffusion.compatibility import settle
from online_aug.distributed.devices import plan_devices
from online_aug.distributed.world import single
from online_aug.loader.pool import open_store
from online_aug.reporting.run_directory import CONFIG_FILE
from online_aug.training.build_loader import build_loader

TRAINER = "train.py"
RESOLUTION = 64


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--turns", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place, ExitStack() as stack:
        folder = Path(place)
        write_images(folder / "images", options.images)
        config = _config(folder, options.workers)
        pairs = _Pairs(folder / "images")
        copied = _with_source(config, str(copy_of(pairs, None, folder / "data")))
        for each in (config, copied):
            _fill(each)
        loaders = {
            "open_loader": open_loader(config),
            "open_loader, losses reported": open_loader(config, schedule={"priority": "hard"}),
            "open_loader, own data set": open_loader(config, dataset=pairs),
        }
        trainers = stack.enter_context(_trainers(config, folder))
        sides = {TRAINER: _trainers_epoch(trainers)}
        for name, loader in loaders.items():
            stack.enter_context(loader)
            sides[name] = _own_epoch(loader, reports="losses" in name)
        _print(in_turns(sides, options.turns), len(trainers) * BATCH_SIZE)


class _Pairs:
    """The images as a caller's own map-style data set: PIL images with labels."""

    def __init__(self, folder: Path) -> None:
        self._images = folder_splits(folder)["train"]
        self.classes = self._images.class_names

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return self._images.load(index), int(self._images.labels[index])


def _config(folder: Path, workers: int) -> Config:
    data = DATA.model_dump() | {
        "source": str(folder / "images"),
        "root": folder / "data",
        "workers": workers,
        "val_fraction": 0.01 * CLASSES,
        "test_fraction": 0.01 * CLASSES,
    }
    return Config.model_validate(
        {
            "data": data,
            "method": {"name": "diff_mix", "strength": [0.7]},
            "mixing": {"synthetic_probability": 0.5},
            "generation": {"model": "embedded", "resolution": RESOLUTION, "variants_per_image": 1},
            "finetune": {"enabled": False},
            "cache": {"path": folder / "cache"},
            "devices": {"train": "cpu", "generate": "none"},
            "optim": {"batch_size": BATCH_SIZE},
            "run": {"dir": folder / "runs"},
        }
    )


def _with_source(config: Config, source: str) -> Config:
    return config.model_copy(update={"data": config.data.model_copy(update={"source": source})})


def _fill(config: Config) -> None:
    """Put an image for every request into the cache, which no generator has to make then."""
    experiment = _experiment(config)
    rng = np.random.default_rng(1)
    with open_store(config, experiment.splits.train) as store:
        for request in experiment.plan:
            noise = rng.integers(0, 256, (RESOLUTION, RESOLUTION, 3), dtype=np.uint8)
            store.put_many([Entry(request.to_fields(), noise)])


def _experiment(config: Config) -> Experiment:
    settled = settle(config)
    return Experiment(settled, load_splits(settled.data), "cpu")


def _trainers(config: Config, folder: Path) -> OnlineAugLoader:
    experiment = _experiment(config)
    run = folder / "runs"
    run.mkdir()
    (run / CONFIG_FILE).write_text(resolved_yaml(experiment.config))
    devices = plan_devices(config.devices, generates=False)
    return build_loader(experiment, devices, single("cpu"), run)


def _trainers_epoch(loader: OnlineAugLoader) -> Callable[[int], object]:
    def epoch(turn: int) -> None:
        loader.set_epoch(turn + 1)
        for batch in loader:
            assert batch.images.shape[0] == BATCH_SIZE

    return epoch


def _own_epoch(loader: OnlineAugLoader, *, reports: bool) -> Callable[[int], object]:
    losses = torch.ones(BATCH_SIZE)

    def epoch(turn: int) -> None:
        for batch in loader:
            images, _ = batch
            assert images.shape[0] == BATCH_SIZE
            if reports:
                loader.report_losses(batch.indices, losses)

    return epoch


def _print(seconds: dict[str, list[float]], served: int) -> None:
    for name in seconds:
        line = f"{name}: {rate(seconds, name, served):,.0f} images/s"
        ratio = f", {faster(seconds, name, TRAINER):.3f} of {TRAINER}"
        sys.stdout.write(line + (ratio if name != TRAINER else "") + "\n")


if __name__ == "__main__":
    main()
