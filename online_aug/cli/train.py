"""`online-aug train`: train a classifier while a second process makes augmentations for it.

This is the order of a whole run: check everything, prepare the run directory, the generator and
the saliency maps, start the ranks, train. Nothing is written before everything has been checked.
"""

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from online_aug.cli.main import Command, parse_command
from online_aug.config import Config
from online_aug.config.loading import config_digest, resolved_yaml
from online_aug.cores import compute_with, keep_freed_memory
from online_aug.distributed.identity import LAUNCHER_PID, Identity, check_master, identify
from online_aug.errors import UserError
from online_aug.processes import Interrupt, age_s

if TYPE_CHECKING:
    from online_aug.data.image_sets import Splits
    from online_aug.distributed.devices import DevicePlan
    from online_aug.distributed.world import World
    from online_aug.experiment.experiment import Experiment
    from online_aug.producer.supervisor import SupervisorGroup
    from online_aug.training.generators import Generation

# Whatever needs torch or timm is imported in the function that uses it: importing takes seconds,
# and a mistake in the configuration is reported before.

SUMMARY = "Train a classifier while a second process generates augmentations for it."
SWITCHES = {"--dry-run": "print devices, requests and disk; do nothing"}


def main(argv: Sequence[str]) -> int:
    """Read the arguments and the configuration, then run them; return the exit status."""
    command = parse_command(argv, prog="online-aug train", summary=SUMMARY, switches=SWITCHES)
    return start(command, command.load_config(), argv)


def start(command: Command, config: Config, argv: Sequence[str]) -> int:
    """Check everything, prepare data and generator, then train on one or more ranks."""
    from contextlib import nullcontext

    from online_aug.distributed.devices import check_unused
    from online_aug.loader.pool import open_store
    from online_aug.reporting.run_directory import check_room, run_folder
    from online_aug.reporting.run_lock import check_free, sole_trainer
    from online_aug.training.build_loader import check_foregrounds
    from online_aug.training.checkpoints import check_can_go_on
    from online_aug.training.describe_run import describe_run

    me = identify()
    check_master()
    experiment, devices = check(config, me)
    config = experiment.config
    if "--dry-run" in command.switches:
        sys.stdout.write(
            describe_run(experiment, devices, me.launched_ranks) if me.is_first else ""
        )
        return 0
    directory = run_folder(config.run, command.config_path)
    if me.is_ours:  # the process that launched this rank has done the rest
        return train(experiment, devices, directory)
    if me.is_first:
        check_free(directory)
    check_unused(devices.generate if me.is_first_of_node else ())
    check_room(directory, resolved_yaml(config), config.run.resume)
    check_can_go_on(experiment, directory, me.launched_ranks or len(devices.train))
    if config.run.resume:
        check_foregrounds(experiment, directory)
    open_store(config, experiment.splits.train).open()
    experiment.splits.save_known()
    with sole_trainer(directory) if me.is_first else nullcontext():
        return run(experiment, devices, directory, argv)


def run(
    experiment: "Experiment", devices: "DevicePlan", directory: Path, argv: Sequence[str]
) -> int:
    """Prepare run directory, generator and maps of a checked run, and train; once a run."""
    from contextlib import nullcontext

    from online_aug.distributed.launcher import launch, needs_launcher
    from online_aug.producer.preparation import prepare_generation
    from online_aug.reporting.run_directory import describe_resumption, finished_text, prepare
    from online_aug.training.build_loader import check_served
    from online_aug.training.describe_run import describe_start
    from online_aug.training.generators import warm_generators

    me, config = identify(), experiment.config
    if config.run.resume and (done := finished_text(directory, config.run.epochs)):
        sys.stdout.write(f"{done}\n" if me.is_first else "")
        return 0
    if me.is_first:
        sys.stdout.write(describe_start(experiment, devices, me.launched_ranks))
        sys.stdout.write(describe_resumption(directory, config))
        prepare(directory, resolved_yaml(config), config_digest(config), config.run.resume)
    is_alone = not (me.is_launched or needs_launcher(devices.train))
    with warm_generators(config, devices, directory) if is_alone else nullcontext() as generators:
        keep_freed_memory(devices.generator)
        prepare_generation(experiment, devices.finetune)
        check_served(experiment, generates=bool(devices.generate))  # the plan is known now
        if not needs_launcher(devices.train):
            return train(experiment, devices, directory, generators)
    return launch("online_aug", ["train", *argv], devices.train)


def check(config: Config, me: Identity) -> tuple["Experiment", "DevicePlan"]:
    """Build the experiment and the device plan of this node, and refuse what could not be run.

    Raises:
        UserError: If anything about the run cannot be used.
    """
    from online_aug.classifier.fit import check_fit
    from online_aug.classifier.model import check_pretrained
    from online_aug.data.sources import load_splits
    from online_aug.diffusion.compatibility import settle
    from online_aug.distributed.devices import plan_devices
    from online_aug.distributed.world import rank_device
    from online_aug.experiment.experiment import Experiment
    from online_aug.experiment.saliency import check_saliency
    from online_aug.loader.pool import check_writable
    from online_aug.reporting.trackers.tracking import check_trackers
    from online_aug.training.build_loader import check_sequence, check_served
    from online_aug.training.deepspeed_setup import check_deepspeed, part_size

    if me.is_first and not me.is_ours:  # the only rank that logs
        check_trackers(config.run.trackers)
    devices = plan_devices(
        config.wished_devices, generates=config.needs_generator, ranks=me.local_world_size
    )
    check_training(config, devices.train, me.launched_ranks)
    splits = load_splits(config.data, config.cache.path)
    check_test(splits)
    num_classes = len(splits.train.class_names)
    if not me.is_ours:  # the process that launched this rank has tried
        at_a_time = part_size(config, me.launched_ranks or len(devices.train))
        size = config.data.image_size
        notes = check_fit(config.classifier, num_classes, size, at_a_time)
        sys.stdout.writelines(f"{note}\n" for note in notes if me.is_first)
        check_pretrained(config.classifier, num_classes, size)
    config = settle(config)
    experiment = Experiment(config, splits, devices.generator)
    check_writable(config)
    check_saliency(experiment)
    experiment.check(generates=bool(devices.generate))
    check_served(experiment, generates=bool(devices.generate))
    check_sequence(experiment, resolved_yaml(config))
    check_deepspeed(config, num_classes, rank_device(devices.train))
    return experiment, devices


def check_test(splits: "Splits") -> None:
    """Refuse images of which none are set apart for the test.

    Raises:
        UserError: If so.
    """
    if not len(splits.test):
        raise UserError(
            "data.source must have images to test by, got the copy of a training set that "
            "open_loader made for a loop of one's own: give the images in a folder"
        )


def check_training(config: Config, devices: Sequence[str], ranks: int | None = None) -> None:
    """Refuse settings of classifier, optimizer, transforms or DeepSpeed that cannot be used.

    Args:
        config: The configuration of the run.
        devices: The training devices of this node.
        ranks: Number of ranks of all nodes; None if there is one for each of these devices.

    Raises:
        UserError: If one of the settings cannot be used.
    """
    from online_aug.classifier.model import check_classifier, check_precision
    from online_aug.classifier.optim import check_optimizer
    from online_aug.data.transforms import check_policy
    from online_aug.training.deepspeed_setup import deepspeed_config

    deepspeed_config(config, ranks or len(devices))
    check_classifier(config.classifier)
    check_precision(config.classifier, devices)
    check_optimizer(config.optim)
    check_policy(config.data)
    if config.optim.min_lr > config.optim.lr:
        raise UserError(
            f"optim.min_lr must be at most optim.lr, got {config.optim.min_lr:g} "
            f"for {config.optim.lr:g}"
        )


def train(
    experiment: "Experiment",
    devices: "DevicePlan",
    directory: Path,
    generators: "SupervisorGroup | None" = None,
) -> int:
    """Meet the other ranks and train; return 128 plus the signal that ended the run early, or 0.

    Args:
        experiment: Checked, fine-tuned, and with its saliency maps.
        devices: Devices of this node.
        directory: Run directory.
        generators: The generation processes, if they are warmed up already.
    """
    from online_aug.distributed.world import failing_together, rank_device, start_distributed
    from online_aug.loader.pool import open_store
    from online_aug.training.build_loader import check_shared
    from online_aug.training.generators import Generation, begin_early, own_generators

    config = experiment.config
    with open_store(config, experiment.splits.train) as store:
        position = store.position()  # on every rank before anything is made: they meet below
    begin_early(generators, config, devices)
    compute_with(devices.train_threads, devices.train[0])
    world = start_distributed(rank_device(devices.train))
    check_shared(world, directory)
    with (
        failing_together(world, directory),
        own_generators(config, devices, world, directory, generators) as own,
    ):
        return train_rank(experiment, devices, world, directory, Generation(own, position))


def train_rank(
    experiment: "Experiment",
    devices: "DevicePlan",
    world: "World",
    directory: Path,
    generation: "Generation",
) -> int:
    """Train as one of the ranks that have met."""
    from online_aug.classifier.model import build_classifier
    from online_aug.distributed.world import barrier, end_distributed
    from online_aug.training.build_loader import build_loader
    from online_aug.training.trainer import TrainingRun

    config = experiment.config
    before_s = age_s(int(os.environ.get(LAUNCHER_PID, os.getpid())))
    classifier = build_classifier(
        config.classifier,
        len(experiment.splits.train.class_names),
        image_size=config.data.image_size,
        seed=config.run.seed,
    )
    with (
        Interrupt() as interrupt,
        build_loader(experiment, devices, world, directory, interrupt, generation) as loader,
        TrainingRun(experiment, classifier, loader, world, directory, before_s) as run,
    ):
        run.resume()
        received = 0
        for epoch in range(run.first_epoch, config.run.epochs):
            if received := run.train_epoch(epoch, interrupt):
                break
            run.validate(epoch)
        else:
            run.finish()
    barrier(world)  # the first rank to end with a signal's status makes the launcher end the others
    end_distributed()
    if received == signal.SIGHUP and world.is_first:  # as by `| head`: standard output is not read
        sys.stderr.write("interrupted: checkpoint written, the same command goes on\n")
    return 128 + received if received else 0
