"""`python -m cache`: what is in a cache and whether it is whole; changes nothing."""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from cache.errors import CacheError, CorruptRecordError
from cache.store import Store
from cache.verify import VerifyReport

EXAMPLES = """examples:
  python -m cache stats runs/cache                what it holds, how large it is
  python -m cache stats runs/cache --json         the same for a program
  python -m cache verify runs/cache               read and decode every record
  python -m cache list runs/cache                 the newest 20 records
  python -m cache list runs/cache --after 100     20 records from position 101

exit status: 0 all well, 1 verify found problems, 2 bad input"""

_PROBLEMS_SHOWN = 20


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand and return the exit status."""
    options = _parser().parse_args(arguments)
    try:
        with Store(options.path, readonly=True) as store:
            store.open()
            status: int = options.run(store, options)
            sys.stdout.flush()
            return status
    except CacheError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except BrokenPipeError:
        # The reader left, as `head` does; keep Python from failing again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m cache",
        description="Look into a cache of generated images.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _command(commands, "stats", _stats, "entries, sizes, methods, rejections and claims")
    _command(commands, "verify", _verify, "check and decode every record; 1 if any is broken")
    listing = _command(commands, "list", _list, "records in the order of arrival")
    listing.add_argument(
        "--limit", type=_count, default=20, metavar="N", help="at most N records (default 20)"
    )
    listing.add_argument(
        "--after",
        type=_count,
        metavar="POSITION",
        help="start behind this position of the log (default: end with the newest)",
    )
    return parser


def _command(
    commands: Any, name: str, run: Callable[[Store, argparse.Namespace], int], text: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=text,
        description=text.capitalize() + ".",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("path", metavar="PATH", help="directory of the cache")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.set_defaults(run=run)
    return parser


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"must be a whole number from 0, got {text!r}")
    return int(text)


def _stats(store: Store, options: argparse.Namespace) -> int:
    found = store.stats()
    if options.json:
        return _print_json(found)
    table = Table("", "", show_header=False, box=None)
    table.add_row("path", found["path"])
    table.add_row("entries", f"{found['entries']:,}")
    for name in ("payload_bytes", "file_bytes"):
        table.add_row(name.removesuffix("_bytes"), _size(found[name]))
    for name in ("by_method", "rejected_by_reason"):
        for label, count in sorted(found[name].items()):
            table.add_row(f"{name.split('_')[0]} {_plain(label) or '(none)'}", f"{count:,}")
    table.add_row("claims", f"{found['claims_live']} live, {found['claims_dead']} dead")
    _console().print(table)
    return 0


def _verify(store: Store, options: argparse.Namespace) -> int:
    is_quiet = options.json or not sys.stderr.isatty()
    with Progress(console=Console(stderr=True), disable=is_quiet, transient=True) as bar:
        task = bar.add_task("checking", total=None)
        report = store.verify(lambda done, total: bar.update(task, completed=done, total=total))
    if options.json:
        _print_json(_report_fields(report))
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
            {"what": problem.what, "key": _hex(problem.key), "position": problem.position}
            for problem in report.problems
        ],
    }


def _print_report(report: VerifyReport) -> None:
    write = sys.stdout.write
    for problem in report.problems[:_PROBLEMS_SHOWN]:
        where = f" at position {problem.position}" if problem.position else ""
        key = (
            f" {problem.key.hex()}" if problem.key and problem.key.hex() not in problem.what else ""
        )
        write(f"{problem.what}{key}{where}\n")
    if len(report.problems) > _PROBLEMS_SHOWN:
        write(f"... and {len(report.problems) - _PROBLEMS_SHOWN} more (--json lists all)\n")
    verdict = "all well" if report.is_clean else f"{len(report.problems)} problems"
    write(f"{report.records:,} records, {_size(report.payload_bytes)}: {verdict}\n")


def _list(store: Store, options: argparse.Namespace) -> int:
    after = options.after
    if after is None:
        after = max(0, store.position() - options.limit)
    rows = [_row(store, position, key) for position, key in store.tail(after, options.limit)]
    if options.json:
        return _print_json(rows)
    table = Table("position", "key", "created", "size", "bytes", "request", box=None)
    for row in rows:
        table.add_row(*_cells(row))
    _console().print(table)
    return 0


def _row(store: Store, position: int, key: bytes) -> dict[str, Any]:
    row: dict[str, Any] = {"position": position, "key": key.hex()}
    try:
        stored = store.inspect(key)
    except CorruptRecordError as error:
        return row | {"problem": str(error)}
    if stored is None:
        return row | {"problem": "record is missing"}
    return row | {
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
    request = _plain(", ".join(f"{name}={value}" for name, value in row["request"].items()))
    created = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row["created"]))
    size = f"{row['width']} x {row['height']} {row['codec']}"
    return [*start, created, size, f"{row['bytes']:,}", request]


def _console() -> Console:
    return Console(markup=False, highlight=False)


def _plain(text: str) -> str:
    # Requests may come from elsewhere: what they hold must not steer the terminal.
    return "".join(
        letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text
    )


def _print_json(value: Any) -> int:
    sys.stdout.write(json.dumps(value, indent=2) + "\n")
    return 0


def _hex(key: bytes | None) -> str | None:
    return None if key is None else key.hex()


def _size(count: int) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            break
        count /= 1024  # type: ignore[assignment]
    return f"{count:,.0f} {unit}" if unit == "bytes" else f"{count:,.1f} {unit}"
