"""`online-aug finetune`: teach the image generator the classes of a configuration's data set."""

import logging
import sys
from collections.abc import Sequence

from online_aug.cli.arguments import parse_command
from online_aug.config import Config
from online_aug.distributed.identity import identify
from online_aug.distributed.processes import Interrupt

# Whatever needs torch is imported in the function that uses it: a mistake is reported before.

SUMMARY = "Fine-tune the image generator on the training images; `online-aug train` does it too."


def main(argv: Sequence[str]) -> None:
    """Fine-tune what has not been fine-tuned yet and print where the result is."""
    command = parse_command(argv, prog="online-aug finetune", summary=SUMMARY)
    config = command.load_config()
    if identify().is_ours:
        _join(config)
        return
    from online_aug.data.sources import load_splits
    from online_aug.distributed.devices import plan_devices
    from online_aug.experiment.experiment import Experiment
    from online_aug.finetuning.run import ensure_finetuned

    devices = plan_devices(config.devices)
    experiment = Experiment(config, load_splits(config.data), devices.generator)
    experiment.check(generates=True)
    ensure_finetuned(experiment, devices.finetune)
    sys.stdout.write(f"fine-tuned: {experiment.finetuned}\n")


def _join(config: Config) -> None:
    """Do the part of one rank; the process that launched it holds the lock and has checked all."""
    from online_aug.data.sources import load_splits
    from online_aug.distributed.devices import plan_devices
    from online_aug.distributed.world import (
        agree,
        end_distributed,
        rank_device,
        start_distributed,
    )
    from online_aug.experiment.experiment import Experiment
    from online_aug.finetuning.run import finetune_rank

    devices = plan_devices(config.devices, trains=False)
    world = start_distributed(rank_device(devices.generate))
    if not world.is_first:
        logging.disable(logging.WARNING)  # the first rank warns of what all of them find
    experiment = Experiment(config, load_splits(config.data), devices.generator)
    assert experiment.finetuned  # otherwise nobody would have launched this rank
    with Interrupt() as interrupt:

        def leave_together() -> None:
            if received := agree(world, interrupt.received or 0):
                sys.exit(128 + received)

        finetune_rank(experiment, experiment.finetuned, world, leave_together)
    end_distributed()
