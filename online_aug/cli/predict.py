"""`online-aug predict`: name the classes of images with the classifier of a run."""

import argparse
import csv
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from online_aug.cli.main import Parser
from online_aug.cores import compute_with
from online_aug.errors import UserError, escaped

if TYPE_CHECKING:
    from online_aug.classifier.prediction import Prediction

# Whatever needs torch is imported in the function that uses it: a mistake is reported before.

SUMMARY = """\
Predict the classes of images with the classifier of a finished run or of a folder
that online-aug publish wrote, with its own preprocessing and class names. Writes CSV
to standard output: image, rank, class, probability. An image that cannot be read is
named on standard error and left out."""
EXAMPLES = """\
examples:
  online-aug predict runs/quickstart-seed0 photo.jpg
  online-aug predict runs/quickstart-seed0 photos/ --top 3 > predictions.csv
  online-aug predict runs/quickstart-seed0 photos/ --json --strict

exit status: 0; 2 if no image could be read, or with --strict not every one"""
COLUMNS = ("image", "rank", "class", "probability")


def main(argv: Sequence[str]) -> None:
    """Write the predictions.

    Raises:
        UserError: If the classifier cannot be used, an image or folder does not exist, no image can
            be read, or, with `--strict`, one of them cannot.
    """
    found = build_parser().parse_args(argv)
    from online_aug.classifier.hub_format import check_hub_folder

    check_hub_folder(found.run)
    files = list(dict.fromkeys(name for given in found.images for name in _files_of(given)))
    unreadable: list[str] = []
    predictions = _predict(found, files, unreadable)
    if found.json:
        _write_json(predictions, unreadable)
    else:
        _write_csv(predictions)
    sys.stdout.flush()
    for reason in unreadable:
        sys.stderr.write(f"warning: left out, {escaped(reason)}\n")
    if len(unreadable) == len(files) or (unreadable and found.strict):
        raise UserError(f"every image must be readable, {len(unreadable)} of {len(files)} are not")
    if unreadable:
        sys.stderr.write(f"warning: {len(unreadable)} of {len(files)} images left out\n")


def build_parser() -> Parser:
    """Return the parser, which shells complete from."""
    parser = Parser(
        prog="online-aug predict",
        description=SUMMARY,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="a run directory or published folder")
    parser.add_argument(
        "images",
        metavar="IMAGES",
        nargs="+",
        help="image files, and folders, which are searched to any depth",
    )
    parser.add_argument(
        "--top",
        metavar="K",
        type=_count,
        default=1,
        help="name the K likeliest classes; default is 1",
    )
    parser.add_argument("--json", action="store_true", help="write one JSON object instead of CSV")
    parser.add_argument(
        "--strict", action="store_true", help="exit status 2 if an image cannot be read"
    )
    return parser


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"K must be a whole number from 1 on, got {text}")
    return int(text)


def _files_of(given: str) -> Iterator[str]:
    from online_aug.data.folders import image_files

    place = Path(given)
    if place.is_dir():
        names = image_files(place)
        if not names:
            raise UserError(f"IMAGES must be images or folders with some, {given} holds none")
        yield from (str(place / name) for name in names)
    elif place.exists():
        yield given
    else:
        raise UserError(f"IMAGES must be files or folders that exist, got {given}")


def _predict(
    found: argparse.Namespace, files: Sequence[str], unreadable: list[str]
) -> "Iterator[Prediction]":
    """Yield the predictions behind a progress bar, unless they show the progress themselves."""
    from rich.console import Console

    from online_aug.classifier.hub_format import read_hub_model
    from online_aug.classifier.prediction import predict, unlabelled
    from online_aug.config.sections import DevicesConfig
    from online_aug.console import progress
    from online_aug.distributed.devices import plan_devices

    model = read_hub_model(found.run)
    devices = plan_devices(DevicesConfig(generate="none"), generates=False)
    device = devices.train[0]
    compute_with(devices.train_threads, device)
    is_hidden = sys.stdout.isatty() and not found.json
    with progress(
        "predicting", len(files), enabled=not is_hidden, console=Console(stderr=True)
    ) as tally:

        def leave_out(error: UserError) -> None:
            unreadable.append(str(error))
            tally.advance()

        for prediction in predict(
            model, unlabelled(files), device, top=found.top, on_bad_image=leave_out
        ):
            yield prediction
            tally.advance()


def _write_csv(predictions: "Iterable[Prediction]") -> None:
    rows = csv.writer(sys.stdout, lineterminator="\n")
    rows.writerow(COLUMNS)
    for each in predictions:
        ranked = zip(each.classes, each.probabilities, strict=True)
        for rank, (name, probability) in enumerate(ranked, 1):
            rows.writerow((escaped(each.image), rank, name, f"{probability:.6f}"))


def _write_json(predictions: "Iterable[Prediction]", unreadable: Sequence[str]) -> None:
    images = [
        {
            "image": escaped(each.image),
            "predictions": [
                {"class": name, "probability": round(probability, 6)}
                for name, probability in zip(each.classes, each.probabilities, strict=True)
            ],
        }
        for each in predictions
    ]
    content = {"images": images, "unreadable": [escaped(reason) for reason in unreadable]}
    sys.stdout.write(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
