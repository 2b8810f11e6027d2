"""`online-aug study`: answer a question about a configuration with a table and pictures."""

import argparse
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from cache.text import nearest_hint
from online_aug.cli.main import Command, Parser, add_arguments
from online_aug.errors import UserError
from online_aug.files import check_folder
from online_aug.studies import STUDIES, find_study

SUMMARY = "Answer a question about a configuration with a table and pictures."


def main(argv: Sequence[str]) -> int:
    """Run one study, or list them for `--help`; return the exit status.

    Raises:
        UserError: If there is no such study, or the configuration does not fit it.
    """
    if not argv or argv[0].startswith("-"):
        _listing().parse_args([*argv] or ["--help"])
    if argv[0] not in STUDIES:
        raise UserError(
            f"the study must be one of {', '.join(STUDIES)}, got {argv[0]}"
            f"{nearest_hint(argv[0], STUDIES)}; see online-aug study --help"
        )
    found = study_parser(argv[0]).parse_intermixed_args(argv[1:])
    config = Command(recipe=found.recipe, overrides=tuple(found.overrides)).load_config()
    folder = found.out or Path(config.run.dir) / f"study-{argv[0]}-{Path(found.recipe).stem}"
    check_folder(folder, "--out" if found.out else "run.dir")
    answer = find_study(argv[0]).run(config, found, folder)
    sys.stdout.write(f"{answer}\nwritten to {folder}\n")
    return 0


def study_parser(name: str) -> Parser:
    """Return the parser of one study: a recipe, overrides, `--out` and options of its own."""
    study = find_study(name)
    prog = f"online-aug study {name}"
    shown = "".join(f"  {prog} {line}\n" for line in study.examples.splitlines())
    parser = Parser(
        prog=prog,
        description=textwrap.fill(study.about, 78),
        epilog=f"examples:\n{shown}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_arguments(parser, {})
    study.add_options(parser)
    parser.add_argument(
        "--out",
        metavar="DIR",
        type=Path,
        help="folder of the result; default is study-... in run.dir",
    )
    return parser


def build_parser() -> Parser:
    """Return the parser of all studies, which shells complete from."""
    parser = _listing()
    studies = parser.add_subparsers(dest="study", parser_class=Parser)
    for name, asks in STUDIES.items():
        studies.add_parser(name, help=asks, parents=[study_parser(name)], add_help=False)
    return parser


def _listing() -> Parser:
    listed = "\n".join(f"  {name:<14} {asks}" for name, asks in STUDIES.items())
    return Parser(
        prog="online-aug study",
        usage="online-aug study NAME RECIPE [key.sub=value ...] [options]",
        description=SUMMARY,
        epilog=f"studies:\n{listed}\n\nonline-aug study NAME --help says more about one of them",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
