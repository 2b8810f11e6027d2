"""`online-aug publish`: write or push the classifier of a finished run, for others to load."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from online_aug.cli.main import Parser

SUMMARY = """\
Publish the classifier of a finished run: model.safetensors, config.json with class
names and preprocessing, and README.md, the model card. timm loads it from the
folder (local-dir:FOLDER) or the hub (hf-hub:USER/NAME), online-aug predict from the
folder. Edit README.md in the run directory first, if you want to say more."""
EXAMPLES = """\
examples:
  online-aug publish runs/quickstart-seed0 --to birds
  online-aug publish runs/quickstart-seed0 --to hf://me/birds --private"""


def main(argv: Sequence[str]) -> None:
    """Publish a run and say where it is.

    Raises:
        UserError: If the run has not finished, or the target cannot be written.
    """
    found = build_parser().parse_args(argv)
    # Imported here, so that a mistake is reported before torch is loaded.
    from online_aug.console import stage
    from online_aug.reporting.publication.targets import HUB, publish

    with stage(f"pushing to {found.to}", enabled=found.to.startswith(HUB)):
        place = publish(found.run, found.to, is_private=found.private)
    sys.stdout.write(f"published to {place}\n")


def build_parser() -> Parser:
    """Return the parser, which shells complete from."""
    parser = Parser(
        prog="online-aug publish",
        description=SUMMARY,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="the directory of a finished run")
    parser.add_argument(
        "--to",
        metavar="TARGET",
        required=True,
        help="a folder, or hf://USER/NAME, which is made if it is missing",
    )
    parser.add_argument(
        "--private",
        action="store_true",
        help="make a new repository of the hub visible to its owner alone",
    )
    return parser
