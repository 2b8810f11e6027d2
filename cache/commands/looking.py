"""`stats`, `verify` and `list`: what is in a cache and whether it is whole; they change nothing."""

import argparse
import sys
from collections import deque
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from cache.commands.arguments import Command, add_filters, count, selection
from cache.record import Stored
from cache.selection import Selection, Unreadable, select
from cache.store import Store
from cache.terminal import (
    moment,
    plain,
    print_json,
    print_json_lines,
    print_table,
    progress,
    request_words,
    size,
)
from cache.verify import VerifyReport

_PROBLEMS_SHOWN = 20
_LISTED = 20


def _stats(options: argparse.Namespace) -> int:
    with Store(options.path, readonly=True) as store:
        found = store.stats()
    if options.json:
        print_json(found)
        return 0
    rows = [("path", found["path"]), ("entries", f"{found['entries']:,}")]
    rows += [(name, size(found[f"{name}_bytes"])) for name in ("payload", "file")]
    for name in ("by_method", "rejected_by_reason"):
        for label, number in sorted(found[name].items()):
            rows.append((f"{name.split('_')[0]} {label or '(none)'}", f"{number:,}"))
    rows.append(("claims", f"{found['claims_live']} live, {found['claims_dead']} dead"))
    print_table("", "", rows=rows)
    return 0


def _verify(options: argparse.Namespace) -> int:
    with (
        Store(options.path, readonly=True) as store,
        progress("checking", is_quiet=options.json) as tell,
    ):
        report = store.verify(tell)
    if options.json:
        print_json(_report_fields(report))
    else:
        _print_report(report)
    return 0 if report.is_clean else 1


def _report_fields(report: VerifyReport) -> dict[str, Any]:
    return {
        "records": report.records,
        "positions": report.positions,
        "payload_bytes": report.payload_bytes,
        "is_clean": report.is_clean,
        "problems": [
            {
                "what": problem.what,
                "key": None if problem.key is None else problem.key.hex(),
                "position": problem.position,
            }
            for problem in report.problems
        ],
    }


def _print_report(report: VerifyReport) -> None:
    write = sys.stdout.write
    for problem in report.problems[:_PROBLEMS_SHOWN]:
        where = f" at position {problem.position}" if problem.position else ""
        key = problem.key.hex() if problem.key else ""
        named = f" {key}" if key not in problem.what else ""
        write(f"{plain(problem.what)}{named}{where}\n")
    if len(report.problems) > _PROBLEMS_SHOWN:
        write(f"... and {len(report.problems) - _PROBLEMS_SHOWN} more (--json lists all)\n")
    verdict = "all well" if report.is_clean else f"{len(report.problems)} problems"
    write(f"{report.records:,} records, {size(report.payload_bytes)}: {verdict}\n")


def _list(options: argparse.Namespace) -> int:
    with Store(options.path, readonly=True) as store:
        rows = map(_row, _listed(store, selection(options), options.after))
        if options.json:
            print_json_lines(rows)
        else:
            heads = ("position", "key", "created", "size", "bytes", "request")
            print_table(*heads, rows=map(_cells, rows))
    return 0


def _listed(store: Store, wanted: Selection, after: int | None) -> Iterable[Stored | Unreadable]:
    if after is not None:
        return select(store, replace(wanted, after=after))
    if wanted.is_all and wanted.limit is not None:
        return select(store, replace(wanted, after=max(0, store.position() - wanted.limit)))
    return deque(select(store, replace(wanted, limit=None)), maxlen=wanted.limit)


def _row(found: Stored | Unreadable) -> dict[str, Any]:
    row: dict[str, Any] = {"position": found.position, "key": found.key.hex()}
    return row | ({"problem": found.problem} if isinstance(found, Unreadable) else fields(found))


def fields(stored: Stored) -> dict[str, Any]:
    """All of a record but its image, for a program."""
    return {
        "created": stored.created,
        "codec": stored.codec.name,
        "height": stored.height,
        "width": stored.width,
        "bytes": len(stored.image_bytes),
        "scores": stored.scores,
        "request": stored.request,
    }


def _cells(row: dict[str, Any]) -> list[str]:
    start = [str(row["position"]), row["key"][:12]]
    if "problem" in row:
        return [*start, "", "", "", row["problem"]]
    shape = f"{row['width']} x {row['height']} {row['codec']}"
    request = request_words(row["request"])
    return [*start, moment(row["created"]), shape, f"{row['bytes']:,}", request]


def _add_list_arguments(parser: argparse.ArgumentParser) -> None:
    add_filters(parser, limit=_LISTED)
    parser.add_argument(
        "--after",
        type=count,
        metavar="POSITION",
        help="start behind this position of the log (default: end with the newest)",
    )


STATS = Command(
    "stats",
    "entries, sizes, methods, rejections and claims",
    """runs/cache                       what it holds, how large it is
runs/cache --json                the same for a program""",
    _stats,
    lambda parser: None,
)
VERIFY = Command(
    "verify",
    "check and decode every record; exit status 1 if any is broken",
    """runs/cache                      read and decode everything
runs/cache --json               every problem, for a program""",
    _verify,
    lambda parser: None,
)
LIST = Command(
    "list",
    "records in the order of arrival",
    """runs/cache                        the newest 20 records
runs/cache --after 100            20 records from position 101
runs/cache --target-label 3       the newest 20 of class 3""",
    _list,
    _add_list_arguments,
)
