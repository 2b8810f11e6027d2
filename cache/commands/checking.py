"""`verify`: whether a cache is whole, and what can be done where it is not."""

import argparse
import sys
from pathlib import Path
from typing import Any

from cache.commands.arguments import Command
from cache.errors import DamagedCacheError
from cache.exchange.salvaging import DAMAGED, salvage
from cache.handle import probe
from cache.location import check_readable
from cache.soundness import check_sound, note_sound
from cache.store import Store
from cache.terminal import Tell, plain, print_json, progress, size
from cache.verify import VerifyReport

_PROBLEMS_SHOWN = 20


def _verify(options: argparse.Namespace) -> int:
    with (
        Store(options.path, readonly=not options.repair) as store,
        progress("checking", is_quiet=options.json) as tell,
    ):
        check_readable(store.path)  # a store that may write would make one
        salvaged = _made_sound(store.path, options.repair, tell)
        report = store.verify(tell, repair=options.repair)
    if options.json:
        print_json(_report_fields(report) | {"salvaged": salvaged})
    else:
        _print_report(report, salvaged, options)
    return 0 if report.is_clean or options.repair else 1


def _made_sound(path: Path, is_repair: bool, tell: Tell) -> int | None:
    """Records saved from a file whose pages are damaged; None where they are not."""
    try:
        if check_sound(path, trusts_note=False):
            probe(path)  # before another program's file is noted
            note_sound(path)  # so that it is not examined again when it is opened
    except DamagedCacheError as damage:
        if not is_repair:
            raise
        return salvage(path, damage, tell)
    return None


def _report_fields(report: VerifyReport) -> dict[str, Any]:
    return {
        "records": report.records,
        "positions": report.positions,
        "payload_bytes": report.payload_bytes,
        "is_clean": report.is_clean,
        "dropped": [key.hex() for key in report.dropped],
        "problems": [
            {
                "what": problem.what,
                "key": None if problem.key is None else problem.key.hex(),
                "position": problem.position,
            }
            for problem in report.problems
        ],
    }


def _print_report(report: VerifyReport, salvaged: int | None, options: argparse.Namespace) -> None:
    write = sys.stdout.write
    if salvaged is not None:
        write(
            f"{salvaged:,} records taken into a new file; the damaged one is kept as {DAMAGED}. "
            "Rejections, service counts and saliency maps start anew\n"
        )
    for problem in report.problems[:_PROBLEMS_SHOWN]:
        where = f" at position {problem.position}" if problem.position else ""
        key = problem.key.hex() if problem.key else ""
        named = f" {key}" if key not in problem.what else ""
        write(f"{plain(problem.what)}{named}{where}\n")
    if len(report.problems) > _PROBLEMS_SHOWN:
        write(f"... and {len(report.problems) - _PROBLEMS_SHOWN} more (--json lists all)\n")
    verdict = "all well" if report.is_clean else f"{len(report.problems)} problems"
    write(f"{report.records:,} records, {size(report.payload_bytes)}: {verdict}\n")
    if options.repair and not report.is_clean:
        write(f"repaired: {len(report.dropped):,} records dropped, indexes written anew\n")


def _add_verify_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--repair",
        action="store_true",
        help="drop broken records and write the indexes anew; where LMDB's pages are damaged, "
        "take all whole records into a new file",
    )


VERIFY = Command(
    "verify",
    "check and decode every record; exit status 1 if any is broken and not repaired",
    """runs/cache                      read and decode everything
runs/cache --json               every problem, for a program
runs/cache --repair             drop what is broken, write the rest anew""",
    _verify,
    _add_verify_arguments,
)
