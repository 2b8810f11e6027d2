"""`online-aug report`: write the page of a run, or of several side by side."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from online_aug.cli.main import Parser
from online_aug.errors import UserError

SUMMARY = """\
Write the report of a run, or of several runs side by side, as one HTML file that
loads nothing. Every run writes its own while it trains; this writes it anew, or
compares. Runs that differ by their seeds are one recipe, with means over seeds.
The baseline is the first recipe without synthetic images, or else the first one."""
EXAMPLES = """\
examples:
  online-aug report runs/quickstart-seed0
  online-aug report runs/vanilla-seed* runs/mix-seed* --out comparison.html"""


def main(argv: Sequence[str]) -> None:
    """Write a report and say where it is.

    Raises:
        UserError: If a folder is not a run that has trained an epoch, the runs are of different
            data, or the file cannot be written.
    """
    found = build_parser().parse_args(argv)
    folders = list(dict.fromkeys(found.runs))
    out: Path = found.out or _usual_place(folders)
    if out.is_dir() or not out.parent.is_dir():
        kind = "is a folder" if out.is_dir() else "is in no folder that exists"
        raise UserError(f"--out must be a file in a folder that exists, {out} {kind}")
    # Imported here, so that a mistake is reported before torch is loaded.
    from online_aug.reporting.html_report import write_comparison, write_report

    try:
        if len(folders) == 1:
            write_report(folders[0], out)
        else:
            write_comparison(folders, out)
    except OSError as error:
        raise UserError(f"--out must be writable, {out} is not: {error.strerror}") from None
    sys.stdout.write(f"written to {out}\n")


def build_parser() -> Parser:
    """Return the parser, which shells complete from."""
    parser = Parser(
        prog="online-aug report",
        description=SUMMARY,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="a run directory")
    parser.add_argument(
        "--out",
        metavar="FILE",
        type=Path,
        help="the HTML file; default is report.html in the run directory, of several runs "
        "comparison.html beside the first one",
    )
    return parser


def _usual_place(folders: Sequence[Path]) -> Path:
    from online_aug.reporting.run_directory import REPORT_FILE

    first = folders[0]
    if not first.is_dir():
        raise UserError(f"a run must be a folder, not found: {first}")
    return first / REPORT_FILE if len(folders) == 1 else first.resolve().parent / "comparison.html"
