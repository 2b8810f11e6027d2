"""`online-aug evaluate`: judge the `model.safetensors` of a run on the test split."""

import json
import math
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from online_aug.classifier.class_names import BEST_FILE, MODEL_FILE
from online_aug.cli.main import parse_command
from online_aug.config import Config
from online_aug.cores import compute_with
from online_aug.errors import UserError
from online_aug.files import check_folder
from online_aug.reporting.run_directory import CONFIG_FILE, run_folder

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from online_aug.classifier.evaluation import Evaluation
    from online_aug.reporting.class_results import Mistake
    from online_aug.reporting.disturbed import Disturb

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
runs/quickstart-seed0 --attack fgsm --epsilon 8/255
runs/quickstart-seed0 --attack pgd --corruptions
runs/quickstart-seed0 --corruptions=noise,JPEG
runs/quickstart-seed0 --table classes.csv
"""
EPSILON, ALL = "8/255", "all"


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
        add_options=add_options,
    )
    disturbances = _disturbances(command.options)
    if command.options.table is not None:
        check_folder(command.options.table.absolute().parent, "--table")
    config = command.load_config()
    run = folder or run_folder(config.run, command.config_path)
    weights = run / (BEST_FILE if "--best" in command.switches else MODEL_FILE)
    result, disturbed = _judge(config, weights, disturbances)
    if command.options.table is not None:
        _write_table(result, command.options.table)
    if "--json" in command.switches:
        more = {"disturbed": disturbed} if disturbed else {}
        sys.stdout.write(json.dumps(asdict(result) | more, indent=2) + "\n")
        return
    console = open_console()
    if disturbed:
        console.print(_table("disturbed by", disturbed))
    _print(result, console)


def add_options(parser: ArgumentParser) -> None:
    """Add where the table of classes goes, and what an evaluation can disturb images by."""
    parser.add_argument(
        "--table",
        type=Path,
        metavar="FILE",
        help="also write a CSV file with a row for each class, worst first: what is recognised, "
        "and what it is most taken for",
    )
    parser.add_argument(
        "--attack",
        choices=("fgsm", "pgd"),
        help="also judge with adversarial noise: one step along the classifier's own gradient, or "
        "ten from a random start",
    )
    parser.add_argument(
        "--epsilon",
        metavar="SIZE",
        help=f"largest change of a pixel by the attack, where 1 is white; default {EPSILON}",
    )
    parser.add_argument(
        "--corruptions",
        nargs="?",
        const=ALL,
        metavar="NAMES",
        help="also judge under common corruptions of our own, each the mean of three severities: "
        "all, or some as in --corruptions=noise,JPEG",
    )


def _disturbances(options: Namespace) -> "dict[str, list[Disturb]]":
    """Return the disturbances that are asked for, each with all of its severities.

    Raises:
        UserError: If a corruption is unknown, or the size of an attack is none.
    """
    if options.attack is None and options.epsilon is not None:
        raise UserError(f"--epsilon must come with --attack, got {options.epsilon} alone")
    epsilon = _fraction(options.epsilon or EPSILON)
    if options.attack is None and options.corruptions is None:
        return {}
    from cache.text import nearest_hint
    from online_aug.reporting.disturbed import CORRUPTIONS, SEVERITIES, attack, corruption

    found = {}
    if options.attack:
        title = f"{options.attack.upper()} {options.epsilon or EPSILON}"
        found[title] = [attack(options.attack, 255 * epsilon)]
    asked = options.corruptions or ""
    for name in CORRUPTIONS if asked == ALL else filter(None, asked.split(",")):
        if name not in CORRUPTIONS:
            raise UserError(
                f"--corruptions must name some of {', '.join(CORRUPTIONS)}, got {name}"
                f"{nearest_hint(name, CORRUPTIONS)}"
            )
        found[name] = [corruption(name, severity) for severity in range(SEVERITIES)]
    return found


def _fraction(text: str) -> float:
    upper, _, lower = text.partition("/")
    try:
        size = float(upper) / float(lower or 1)
    except (ValueError, ZeroDivisionError):
        size = math.nan
    if not 0 < size <= 1:
        raise UserError(f"--epsilon must be above 0 and at most 1, such as {EPSILON}, got {text}")
    return size


def _config_of(folder: Path) -> Path:
    if not (folder / CONFIG_FILE).is_file():
        raise UserError(f"a run directory must hold {CONFIG_FILE}, {folder} does not")
    return folder / CONFIG_FILE


def _judge(
    config: Config, weights: Path, disturbances: "Mapping[str, Sequence[Disturb]]"
) -> "tuple[Evaluation, dict[str, float]]":
    import torch

    from online_aug.classifier.class_names import check_class_names
    from online_aug.classifier.evaluation import evaluate
    from online_aug.classifier.model import build_classifier
    from online_aug.data.sources import load_splits
    from online_aug.distributed.devices import plan_devices
    from online_aug.reporting.disturbed import accuracies

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
    devices = plan_devices(config.wished_devices, generates=False)
    device = torch.device(devices.train[0])
    compute_with(devices.train_threads, devices.train[0])
    check_class_names(weights, "the run", images.class_names)
    settings = config.classifier.model_copy(update={"checkpoint": weights})
    classifier = build_classifier(
        settings, len(images.class_names), image_size=config.data.image_size, needs_head=True
    )
    classifier.to(device)
    found = evaluate(classifier, images, config.data, device, train_labels=splits.train.labels)
    if not disturbances:
        return found, {}
    each = {
        f"{name} {number}": disturb
        for name, severities in disturbances.items()
        for number, disturb in enumerate(severities)
    }
    shares = accuracies(classifier.eval(), images, config.data, device, each)
    return found, {
        name: sum(shares[f"{name} {number}"] for number in range(len(severities))) / len(severities)
        for name, severities in disturbances.items()
    }


def _print(result: "Evaluation", console: "Console") -> None:
    from online_aug.console import percent
    from online_aug.reporting.class_results import EXTREMES, SHOWN, mistakes

    parts = {
        "class": result.per_class,
        "group": result.per_group,
        "training images": result.per_shots,
    }
    for title, shares in parts.items():
        if shares:
            _print_shares(title, shares, console)
    if len(result.per_class) > SHOWN and (found := mistakes(result.confusion, EXTREMES)):
        console.print(_mistakes_table(found))
    worst = result.worst_group
    console.print(
        f"top1 {percent(result.top1)}, top5 {percent(result.top5)} of {result.images} images, "
        + (f"worst group {percent(worst)}, " if worst is not None else "")
        + f"loss {result.loss:.4f}"
    )


def _print_shares(title: str, shares: Mapping[str, float], console: "Console") -> None:
    """Print what is recognised; of many classes the worst, the best and a line on all."""
    from online_aug.reporting.class_results import EXTREMES, SHOWN, ordered, spread_of

    if len(shares) <= SHOWN:
        console.print(_table(title, shares))
        return
    classes = ordered(shares)
    console.print(_table(f"{EXTREMES} worst of {title}", dict(classes[:EXTREMES])))
    console.print(_table(f"{EXTREMES} best of {title}", dict(classes[-EXTREMES:])))
    console.print(f"{spread_of(shares)} (--table FILE writes all)", soft_wrap=True)


def _mistakes_table(found: "Sequence[Mistake]") -> "Table":
    from rich.table import Table

    from online_aug.console import percent

    table = Table("class", "taken for", "images", "of the class", title="commonest mistakes")
    for each in found:
        table.add_row(each.true, each.taken, f"{each.images:,}", percent(each.share))
    return table


def _write_table(result: "Evaluation", path: Path) -> None:
    from online_aug.files import write_atomically
    from online_aug.reporting.class_results import class_table

    try:
        write_atomically(path, class_table(result))
    except OSError as error:
        raise UserError(
            f"--table must be a file that can be written, got {path}: {error}"
        ) from None


def _table(title: str, shares: Mapping[str, float]) -> "Table":
    from rich.table import Table

    from online_aug.console import percent

    table = Table(title, "recognised", title="test split")
    for name, share in shares.items():
        table.add_row(name, percent(share))
    return table
