"""`online-aug finetune`: teach the image generator the classes of a configuration's data set."""

import sys
from collections.abc import Sequence

from online_aug.cli.main import parse_command
from online_aug.cores import keep_freed_memory
from online_aug.distributed.identity import identify
from online_aug.errors import UserError

# Whatever needs torch is imported in the function that uses it: a mistake is reported before.

SUMMARY = (
    "Fine-tune the image generator on the training images. `online-aug train` and `fill` do it "
    "too if the result is missing. Ctrl-C leaves a checkpoint, and the same command goes on."
)
EXAMPLES = """\
cub_diff_mix
cub_diff_mix finetune.steps=2000 finetune.validation_steps=500
cub_diff_mix --dry-run
"""
SWITCHES = {"--dry-run": "print what would be learned and where the result would be; do nothing"}


def main(argv: Sequence[str]) -> None:
    """Fine-tune what has not been fine-tuned yet and print where the result is.

    Raises:
        UserError: If the configuration fine-tunes nothing, or something in it cannot be used.
    """
    command = parse_command(
        argv, prog="online-aug finetune", summary=SUMMARY, switches=SWITCHES, examples=EXAMPLES
    )
    config = command.load_config()
    from online_aug.finetuning.run import ensure_finetuned, join_finetuning

    if identify().is_ours:
        join_finetuning(config)
        return
    from online_aug.data.sources import load_splits
    from online_aug.diffusion.compatibility import settle
    from online_aug.distributed.devices import plan_devices
    from online_aug.experiment.experiment import Experiment

    devices = plan_devices(config.wished_devices)
    splits = load_splits(config.data, config.cache.path)
    experiment = Experiment(settle(config), splits, devices.generator)
    experiment.check(generates=True)
    diffusion = experiment.diffusion
    if diffusion.finetuned is None:
        raise UserError(
            "finetune.enabled must be true, and a method must use what is learned, to fine-tune; "
            f"got {str(config.finetune.enabled).lower()} with {', '.join(experiment.methods)}"
        )
    if "--dry-run" in command.switches:
        steps = 0 if diffusion.is_ready else diffusion.adaptation.steps
        sys.stdout.write(f"model      {diffusion.model}\nlearns     {config.finetune.mode}, ")
        sys.stdout.write(f"{steps} steps\nresult     {diffusion.finetuned}\n")
        return
    keep_freed_memory(devices.generator)
    ensure_finetuned(experiment, devices.finetune)
    sys.stdout.write(f"fine-tuned: {diffusion.finetuned}\n")
