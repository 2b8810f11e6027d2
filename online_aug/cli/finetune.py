"""Fine-tune the image generator on the training images of a configuration."""

import logging
import os
import sys
from collections.abc import Sequence

from online_aug.cli.arguments import parse_command
from online_aug.config import Config
from online_aug.console import run_main
from online_aug.data.sources import load_splits
from online_aug.distributed.devices import plan_devices
from online_aug.distributed.launcher import RECORD
from online_aug.distributed.processes import Interrupt
from online_aug.distributed.world import (
    agree,
    end_distributed,
    rank_device,
    start_distributed,
)
from online_aug.experiment.experiment import Experiment
from online_aug.finetuning.run import ensure_finetuned, finetune_rank


def main(argv: Sequence[str]) -> None:
    """Do what is missing, and say where the result is; or one rank's part of it."""
    command = parse_command(
        argv, prog="python -m online_aug.finetune", summary="Fine-tune the image generator."
    )
    config = command.load_config()
    if RECORD in os.environ:
        _join(config)
        return
    devices = plan_devices(config.devices)
    experiment = Experiment(config, load_splits(config.data), devices.generator)
    experiment.check(generates=True)
    ensure_finetuned(experiment, devices.finetune)
    sys.stdout.write(f"fine-tuned: {experiment.finetuned}\n")


def _join(config: Config) -> None:
    """Be one of the ranks that `_launch` started; it holds the lock, and has checked all."""
    devices = plan_devices(config.devices, trains=False)
    world = start_distributed(rank_device(devices.generate))
    if not world.is_first:
        logging.disable(logging.WARNING)  # the first says what all of them find
    experiment = Experiment(config, load_splits(config.data), devices.generator)
    assert experiment.finetuned  # otherwise nobody would have started this
    with Interrupt() as interrupt:

        def leave_together() -> None:
            if received := agree(world, interrupt.received or 0):
                sys.exit(128 + received)

        finetune_rank(experiment, experiment.finetuned, world, leave_together)
    end_distributed()


if __name__ == "__main__":
    run_main(main)
