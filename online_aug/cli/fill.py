"""`online-aug fill`: make a configuration's images ahead of training, or on another machine.

The next call, or `online-aug train`, goes on with what it leaves in the cache.
"""

import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

from online_aug.cli.main import parse_command
from online_aug.config import Config
from online_aug.config.loading import changed
from online_aug.cores import compute_with
from online_aug.distributed.identity import launched_part
from online_aug.errors import UserError
from online_aug.processes import Interrupt

if TYPE_CHECKING:
    from online_aug.distributed.devices import DevicePlan
    from online_aug.experiment.experiment import Experiment

# Whatever needs torch is imported in the function that uses it: a mistake is reported before.

SUMMARY = (
    "Make the images of a configuration ahead of training, or on another machine, fine-tuning the "
    "generator first if that is due. Ctrl-C stops it after storing what is finished, and the "
    "same command goes on. Started by torchrun, deepspeed or srun, each process begins with its "
    "own part of the plan; how several machines share one is told in "
    "docs/guide/SEVERAL_MACHINES.md. Afterwards `online-aug train` finds the images in cache.path; "
    "devices.generate=none makes it train on them alone."
)
EXAMPLES = """\
cub_diff_mix
cub_diff_mix --print-speed
cub_diff_mix generation.slots=16 devices.generate=cuda:1 cache.path=/data/cub
cub_diff_mix cache.path=/local/part schedule.stripes=2 schedule.stripe=0 schedule.helps=false
"""
SWITCHES = {"--print-speed": "make images for ten seconds, store none, and say how fast it was"}
SPEED_S = 10.0


def main(argv: Sequence[str]) -> int:
    """Check everything, then fill the cache or measure the speed; return the exit status."""
    command = parse_command(
        argv, prog="online-aug fill", summary=SUMMARY, switches=SWITCHES, examples=EXAMPLES
    )
    config = own_part(command.load_config())
    check_fillable(config)
    experiment, devices = _prepare(config)
    from online_aug.distributed.devices import sole_generator

    with sole_generator(devices.generator):
        if "--print-speed" in command.switches:
            return print_speed(experiment, devices)
        return fill(experiment, devices)


def own_part(config: Config) -> Config:
    """Return the configuration with the part of the plan that a launcher gives to this process."""
    part, schedule = launched_part(), config.schedule
    return changed(
        config,
        "schedule",
        stripe=schedule.stripe + schedule.stripes * part.number,
        stripes=schedule.stripes * part.count,
    )


def check_fillable(config: Config) -> None:
    """Refuse a configuration whose images cannot be made ahead.

    Raises:
        UserError: If it makes no images, or needs saliency maps of the classifier in training.
    """
    if not config.mixing.is_synthetic:
        raise UserError("mixing.synthetic_probability must be above 0 to fill a cache, got 0")
    if config.mixing.imported == "only":
        raise UserError("mixing.imported must be null or beside to fill a cache, got only")
    if not config.is_planned:
        names = ", ".join(settings.name for settings in config.methods)
        raise UserError(
            f"method must be one whose images a generator makes, to fill a cache, got {names}, "
            "whose images are composed as they are served: there is nothing to fill"
        )
    if config.devices.generate == "none":
        raise UserError("devices.generate must be auto or a device to fill a cache, got none")
    if len(config.devices.generate) > 1 and isinstance(config.devices.generate, tuple):
        raise UserError(
            "devices.generate must be one device to fill a cache, got "
            f"{', '.join(config.devices.generate)}; start a fill for each, they share the plan"
        )
    if config.plans_follow_classifier:
        raise UserError(
            "saliency.teacher must be a file of weights, or saliency.method one that needs no "
            "training, to fill a cache ahead of it, got the classifier in training"
        )


def _prepare(config: Config) -> tuple["Experiment", "DevicePlan"]:
    from online_aug.data.sources import load_splits
    from online_aug.diffusion.compatibility import settle
    from online_aug.distributed.devices import plan_devices
    from online_aug.experiment.experiment import Experiment
    from online_aug.experiment.saliency import check_saliency

    number = launched_part().local_number
    devices = plan_devices(config.wished_devices, trains=False, number=number)
    splits = load_splits(config.data, config.cache.path)
    experiment = Experiment(settle(config), splits, devices.generator)
    check_saliency(experiment)
    experiment.check(generates=True)
    compute_with(devices.generate_threads, devices.generator)
    return experiment, devices


def fill(experiment: "Experiment", devices: "DevicePlan") -> int:
    """Make the images of the plan that the cache lacks.

    Returns:
        0, or 128 plus the signal that ended it early.

    Raises:
        UserError: If the cache is full before all images are made.
    """
    from online_aug.loader.pool import open_store
    from online_aug.producer.filling import describe_plan, make_missing
    from online_aug.producer.preparation import prepare_generation
    from online_aug.reporting.refusals import refusal_warning, refused_shares
    from online_aug.training.describe_run import describe_start

    with open_store(experiment.config, experiment.splits.train).open() as store:
        experiment.splits.save_known()
        sys.stdout.write(describe_start(experiment, devices))
        prepare_generation(experiment, devices.finetune)
        sys.stdout.write(f"{describe_plan(experiment, store)}\n")
        with Interrupt() as interrupt:
            if make_missing(experiment, store, interrupt):
                sys.stdout.write(f"{describe_plan(experiment, store)}\n")
        if warning := refusal_warning(refused_shares(experiment, experiment.plan)):
            sys.stdout.write(f"warning: {warning}\n")
        if interrupt.received is not None:
            sys.stdout.write("interrupted: the same command goes on\n")
        return interrupt.exit_status


def print_speed(experiment: "Experiment", devices: "DevicePlan") -> int:
    """Print how many images a second this machine makes.

    Returns:
        0, or 128 plus the signal that ended it early.

    Raises:
        UserError: If saliency maps are due: the plan is not known before.
    """
    from online_aug.console import duration, rate
    from online_aug.experiment.experiment import Experiment
    from online_aug.experiment.judge import ensure_judge
    from online_aug.producer.filling import measure_speed
    from online_aug.producer.work import load_generator, work_of

    sys.stdout.write(f"{devices}\n")
    if not experiment.diffusion.is_ready:
        sys.stdout.write("measured before fine-tuning, whose result is as fast\n")
        plain = changed(experiment.config, "finetune", enabled=False)
        experiment = Experiment(plain, experiment.splits, experiment.device)
    ensure_judge(experiment)
    if not experiment.strengths.are_known:
        experiment = replace(experiment, only_trials=True)
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
                f" {generator.slots} at a time, {generator.fast_paths});"
                f" the {len(experiment.plan)} of the plan take {duration(whole)}"
            )
        else:
            said = "interrupted before there was anything to measure"
        sys.stdout.write(f"{said}\n")
        return interrupt.exit_status
