"""Make a configuration's images ahead of training, or on another machine, in this process alone.

`python -m online_aug.fill configs/x.yaml`; the next call or `train.py` goes on with what it leaves.
"""

import sys
from collections.abc import Sequence
from contextlib import closing
from typing import TYPE_CHECKING

from online_aug.cli.arguments import parse_command
from online_aug.config import Config
from online_aug.console import run_main
from online_aug.distributed.processes import Interrupt
from online_aug.errors import UserError

if TYPE_CHECKING:
    from online_aug.distributed.devices import DevicePlan
    from online_aug.experiment.experiment import Experiment

# torch is imported where it is used: that takes seconds, and a mistake is to be said before.

SUMMARY = (
    "Make the images of a configuration ahead of training, or on another machine, fine-tuning the "
    "generator first where that is due. Ctrl-C stops it after storing what is finished, and the "
    "same command goes on. Afterwards train.py finds the images in cache.path; "
    "devices.generate=none makes it train on them alone."
)
EXAMPLES = """\
configs/cub_diff_mix.yaml
configs/cub_diff_mix.yaml --print-speed
configs/cub_diff_mix.yaml generation.slots=16 devices.generate=cuda:1 cache.path=/data/cub
"""
SWITCHES = {"--print-speed": "make images for ten seconds, store none, and say how fast it was"}
SPEED_S = 10.0


def main(argv: Sequence[str]) -> int:
    """Check everything, then fill the cache, or measure; 128 plus the signal that ended it."""
    command = parse_command(
        argv,
        prog="python -m online_aug.fill",
        summary=SUMMARY,
        switches=SWITCHES,
        examples=EXAMPLES,
    )
    config = command.load_config()
    check_fillable(config)
    experiment, devices = _prepare(config)
    from online_aug.distributed.devices import sole_generator

    with sole_generator(devices.generator):
        if "--print-speed" in command.switches:
            return print_speed(experiment, devices)
        return fill(experiment, devices)


def check_fillable(config: Config) -> None:
    """Refuse a configuration whose images cannot be made ahead.

    Raises:
        UserError: If it makes none, or only the classifier in training will say which.
    """
    from online_aug.experiment.saliency import ExperimentSaliency

    if not config.mixing.is_synthetic:
        raise UserError("mixing.synthetic_probability must be above 0 to fill a cache, got 0")
    if config.mixing.imported == "only":
        raise UserError("mixing.imported must be null or beside to fill a cache, got only")
    if config.devices.generate == "none":
        raise UserError("devices.generate must be auto or a device to fill a cache, got none")
    if len(config.devices.generate) > 1 and isinstance(config.devices.generate, tuple):
        raise UserError(
            "devices.generate must be one device to fill a cache, got "
            f"{', '.join(config.devices.generate)}; start a fill for each, they share the plan"
        )
    if ExperimentSaliency(config).follows_classifier:
        raise UserError(
            "saliency.teacher must be a file of weights, or saliency.method spectral_residual, to "
            "fill a cache ahead of training, got the classifier in training"
        )


def fill(experiment: "Experiment", devices: "DevicePlan") -> int:
    """Make what the cache lacks of the plan; 128 plus the signal that ended it early, or 0.

    Raises:
        UserError: If the cache is full before the end.
    """
    from online_aug.experiment.teacher import ensure_saliency
    from online_aug.finetuning.run import ensure_finetuned
    from online_aug.loader.pool import open_store
    from online_aug.producer.filling import describe_plan, make_missing

    with open_store(experiment.config, experiment.splits.train).open() as store:
        sys.stdout.write(f"{devices}\n")
        ensure_finetuned(experiment, devices.finetune)
        ensure_saliency(experiment)
        sys.stdout.write(f"{describe_plan(experiment, store)}\n")
        with Interrupt() as interrupt:
            if make_missing(experiment, store, interrupt):
                sys.stdout.write(f"{describe_plan(experiment, store)}\n")
        if interrupt.received is not None:
            sys.stdout.write("interrupted: the same command goes on\n")
        return interrupt.exit_status


def print_speed(experiment: "Experiment", devices: "DevicePlan") -> int:
    """Say how many images a second this machine makes; 128 plus the signal that ended it, or 0.

    Raises:
        UserError: If fine-tuning is due, or maps are: the plan is not known before.
    """
    from online_aug.console import duration, rate
    from online_aug.producer.build import load_generator, work_of
    from online_aug.producer.filling import measure_speed

    sys.stdout.write(f"{devices}\n")
    with Interrupt() as interrupt, closing(load_generator(experiment)) as generator:
        speed = measure_speed(
            work_of(experiment),
            generator,
            seconds=SPEED_S,
            is_stopping=lambda: interrupt.received is not None,
        )
        if speed.images:
            whole = len(experiment.plan) / speed.images_per_s
            said = (
                f"{rate(speed.images_per_s)} images/s ({speed.images} in {duration(speed.seconds)};"
                f" {generator.slots} slots, {experiment.dtype}, {generator.fast_paths});"
                f" the {len(experiment.plan)} of the plan take {duration(whole)}"
            )
        else:
            said = "interrupted before there was anything to measure"
        sys.stdout.write(f"{said}\n")
        return interrupt.exit_status


def _prepare(config: Config) -> tuple["Experiment", "DevicePlan"]:
    """The checked experiment on the generator's device."""
    import torch

    from online_aug.data.sources import load_splits
    from online_aug.distributed.devices import plan_devices
    from online_aug.experiment.experiment import Experiment
    from online_aug.experiment.teacher import check_teacher
    from online_aug.producer.build import check_judge

    devices = plan_devices(config.devices, trains=False)
    torch.set_num_threads(devices.generate_threads)
    experiment = Experiment(config, load_splits(config.data), devices.generator)
    check_teacher(experiment)
    check_judge(experiment)
    experiment.check(generates=True)
    return experiment, devices


if __name__ == "__main__":
    run_main(main)
