"""Train an image classifier while a second process makes diffusion augmentations for it.

python train.py configs/quickstart.yaml [key.sub=value ...] [--dry-run]
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from online_aug.assembly import build_loader, describe_run, open_store
from online_aug.command_line import parse_command, run_main
from online_aug.config_files import config_digest, resolved_yaml
from online_aug.dataloader.sources import load_splits
from online_aug.devices import DevicePlan, plan_devices
from online_aug.finetune import ensure_finetuned
from online_aug.recipe import Recipe
from online_aug.reporting.live import print_summary
from online_aug.reporting.run_directory import is_finished, prepare, read_summary
from online_aug.reporting.terminal import open_console
from online_aug.run_folder import run_folder
from online_aug.training.classifier import build_classifier, check_name
from online_aug.training.deepspeed_config import deepspeed_config
from online_aug.training.distributed import end_distributed, rank_device, start_distributed
from online_aug.training.interrupts import Interrupt
from online_aug.training.launcher import launch, needs_launcher
from online_aug.training_run import TrainingRun


def main(argv: Sequence[str]) -> int:
    """Check everything, prepare data and generator, then train on one or more ranks."""
    command = parse_command(
        argv,
        prog="python train.py",
        summary="Train a classifier while a second process generates augmentations for it.",
        offers_dry_run=True,
    )
    config = command.load_config()
    devices = plan_devices(config.devices)
    check_name(config.classifier.name)
    deepspeed_config(config, len(devices.train))
    recipe = Recipe(config, load_splits(config.data), devices.generate or devices.train[0])
    if command.is_dry_run:
        sys.stdout.write(describe_run(recipe, devices))
        return 0
    open_store(config).open()
    directory = run_folder(config.run, command.config_path)
    if is_first_process():
        sys.stdout.write(f"{devices}\n")
        prepare(directory, resolved_yaml(config), config_digest(config), config.run.resume)
        if is_finished(directory):
            print_summary(read_summary(directory), directory, open_console())
            return 0
    ensure_finetuned(recipe)
    if needs_launcher(devices.train):
        return launch(argv, devices.train, threads=devices.train_threads)
    return train(recipe, devices, directory)


def train(recipe: Recipe, devices: DevicePlan, directory: Path) -> int:
    """Train on this rank; 128 plus the signal where one ended the run early."""
    config = recipe.config
    torch.set_num_threads(devices.train_threads)
    world = start_distributed(rank_device(devices.train))
    classifier = build_classifier(
        config.classifier,
        len(recipe.splits.train.class_names),
        image_size=config.data.image_size,
        seed=config.run.seed,
    )
    with (
        Interrupt() as interrupt,
        build_loader(recipe, devices, world, directory) as loader,
        TrainingRun(recipe, classifier, loader, world, directory) as run,
    ):
        run.resume()
        for epoch in range(run.first_epoch, config.run.epochs):
            if received := run.train_epoch(epoch, interrupt):
                return 128 + received
            run.validate(epoch)
        run.finish()
    end_distributed()
    return 0


def is_first_process() -> bool:
    """No launcher above, or its first rank."""
    return os.environ.get("RANK", "0") == "0"


if __name__ == "__main__":
    run_main(main)
