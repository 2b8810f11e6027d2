"""`online-aug evaluate`: judge the `model.safetensors` of a run on the test split."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from online_aug.classifier.class_names import BEST_FILE, MODEL_FILE
from online_aug.cli.main import parse_command
from online_aug.config import Config
from online_aug.errors import UserError
from online_aug.reporting.run_directory import CONFIG_FILE, run_folder

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from online_aug.classifier.evaluation import Evaluation

# Whatever needs torch is imported in the function that uses it: a mistake is reported before.

SUMMARY = "Judge the model of a run on its test split. RECIPE may be a run directory too."
SWITCHES = {
    "--json": "print one JSON object instead of tables",
    "--best": "judge the epoch that was best on validation instead of the last one",
}
EXAMPLES = """\
runs/quickstart-seed0
quickstart run.seed=1
runs/quickstart-seed0 --best --json
"""


def main(argv: Sequence[str]) -> None:
    """Print top1, top5 and the accuracy of each class, group and part of a long tail.

    Raises:
        UserError: If the configuration, the data or the weights cannot be used.
    """
    from online_aug.console import open_console

    given = next((Path(word) for word in argv if not word.startswith("-")), None)
    folder = given if given is not None and given.is_dir() else None
    command = parse_command(
        [str(_config_of(folder)) if folder and Path(word) == folder else word for word in argv],
        prog="online-aug evaluate",
        summary=SUMMARY,
        switches=SWITCHES,
        examples=EXAMPLES,
    )
    config = command.load_config()
    run = folder or run_folder(config.run, command.config_path)
    result = _judge(config, run / (BEST_FILE if "--best" in command.switches else MODEL_FILE))
    if "--json" in command.switches:
        sys.stdout.write(json.dumps(asdict(result), indent=2) + "\n")
    else:
        _print(result, open_console())


def _config_of(folder: Path) -> Path:
    if not (folder / CONFIG_FILE).is_file():
        raise UserError(f"a run directory must hold {CONFIG_FILE}, {folder} does not")
    return folder / CONFIG_FILE


def _judge(config: Config, weights: Path) -> "Evaluation":
    import torch

    from online_aug.classifier.class_names import check_class_names
    from online_aug.classifier.evaluation import evaluate
    from online_aug.classifier.model import build_classifier
    from online_aug.data.sources import load_splits
    from online_aug.distributed.devices import plan_devices

    if (
        weights.name == BEST_FILE
        and not weights.is_file()
        and (weights.parent / MODEL_FILE).is_file()
    ):
        raise UserError(
            f"--best must be left out for a run without validation images, got {weights.parent}, "
            "which keeps its last epoch alone (data.val_fraction)"
        )
    if not weights.is_file():
        raise UserError(f"{weights} must be the weights of a finished run, not found: train first")
    splits = load_splits(config.data, config.cache.path)
    images = splits.test
    device = torch.device(plan_devices(config.devices).train[0])
    check_class_names(weights, "the run", images.class_names)
    settings = config.classifier.model_copy(update={"checkpoint": weights})
    classifier = build_classifier(
        settings, len(images.class_names), image_size=config.data.image_size, needs_head=True
    )
    classifier.to(device)
    return evaluate(classifier, images, config.data, device, train_labels=splits.train.labels)


def _print(result: "Evaluation", console: "Console") -> None:
    from online_aug.console import percent

    parts = {
        "class": result.per_class,
        "group": result.per_group,
        "training images": result.per_shots,
    }
    for title, shares in parts.items():
        if shares:
            console.print(_table(title, shares))
    worst = result.worst_group
    console.print(
        f"top1 {percent(result.top1)}, top5 {percent(result.top5)} of {result.images} images, "
        + (f"worst group {percent(worst)}, " if worst is not None else "")
        + f"loss {result.loss:.4f}"
    )


def _table(title: str, shares: Mapping[str, float]) -> "Table":
    from rich.table import Table

    from online_aug.console import percent

    table = Table(title, "recognised", title="test split")
    for name, share in shares.items():
        table.add_row(name, percent(share))
    return table
