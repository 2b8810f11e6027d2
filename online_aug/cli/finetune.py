"""`online-aug finetune`: teach the image generator the classes of a configuration's data set."""

import sys
from collections.abc import Sequence

from online_aug.cli.main import parse_command
from online_aug.distributed.identity import identify

# Whatever needs torch is imported in the function that uses it: a mistake is reported before.

SUMMARY = "Fine-tune the image generator on the training images; `online-aug train` does it too."


def main(argv: Sequence[str]) -> None:
    """Fine-tune what has not been fine-tuned yet and print where the result is."""
    command = parse_command(argv, prog="online-aug finetune", summary=SUMMARY)
    config = command.load_config()
    from online_aug.finetuning.run import ensure_finetuned, join_finetuning

    if identify().is_ours:
        join_finetuning(config)
        return
    from online_aug.data.sources import load_splits
    from online_aug.distributed.devices import plan_devices
    from online_aug.experiment.experiment import Experiment

    devices = plan_devices(config.devices)
    experiment = Experiment(config, load_splits(config.data), devices.generator)
    experiment.check(generates=True)
    ensure_finetuned(experiment, devices.finetune)
    sys.stdout.write(f"fine-tuned: {experiment.diffusion.finetuned}\n")
