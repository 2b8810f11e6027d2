"""Settings for DeepSpeed tried before a run begins, in a process that is thrown away.

Only DeepSpeed knows which of its settings go together, and it says so when an engine is built.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from online_aug.command_line import run_main
from online_aug.config import Config
from online_aug.config_files import load_config, resolved_yaml
from online_aug.errors import UserError
from online_aug.training.launcher import LAUNCHER_KEYS, RECORD

_SAID = "error: "


def check_deepspeed(config: Config, num_classes: int, device: str) -> None:
    """Refuse a `classifier.deepspeed` with which this classifier cannot be trained.

    An engine is built for one rank. Nothing is tried where there are no such settings, nor in ranks
    that a process of ours has started, which has tried them.

    Args:
        config: Of the run.
        num_classes: Of the classifier.
        device: That trains, such as `cpu` or `cuda:0`.

    Raises:
        UserError: If DeepSpeed refuses them.
    """
    if not config.classifier.deepspeed or RECORD in os.environ:
        return
    done = subprocess.run(
        [sys.executable, "-m", "online_aug.training.rehearsal", str(num_classes), device],
        env={name: value for name, value in os.environ.items() if name not in LAUNCHER_KEYS},
        cwd=Path(__file__).parents[2],  # the package is found there, wherever this process is
        input=resolved_yaml(config),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line]
        said = [line.removeprefix(_SAID) for line in lines if line.startswith(_SAID)]
        unsaid = f"classifier.deepspeed could not be tried (status {done.returncode})"
        raise UserError(next(iter([*said, ": ".join([unsaid, *lines[-1:]])])))


def main(argv: Sequence[str]) -> None:
    """Build the engine of the configuration on standard input, for a number of classes."""
    from online_aug.training.classifier import build_classifier
    from online_aug.training.distributed import end_distributed, start_distributed
    from online_aug.training.engine import TrainingEngine

    num_classes, device = argv
    config = load_config(Path("/dev/stdin"))
    # Weights say nothing of settings, and may be a download.
    bare = config.classifier.model_copy(update={"pretrained": False, "checkpoint": None})
    world = start_distributed(device)
    image_size = config.data.image_size
    classifier = build_classifier(bare, int(num_classes), image_size=image_size)
    TrainingEngine(classifier, config, world, steps_per_epoch=1)
    end_distributed()


if __name__ == "__main__":
    run_main(main)
