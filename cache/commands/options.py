"""What the subcommands' arguments have in common.

What the commands print: tables for people, JSON for programs, progress on standard error.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from cache.contact_sheet import plain
from cache.exchange.merging import Selection, find_recipe
from cache.exchange.rows import ClassNames, read_class_names
from cache.store import Store


@dataclass(frozen=True)
class Command:
    """One subcommand."""

    name: str
    summary: str
    """What it does, in one line."""
    examples: str
    """Lines of `arguments    what that does`."""
    run: Callable[[argparse.Namespace], int]
    """Returns the exit status."""
    add_arguments: Callable[[argparse.ArgumentParser], None]


class Parser(argparse.ArgumentParser):
    """Errors in one line."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and exit with status 2."""
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")


def add_filters(parser: argparse.ArgumentParser, *, limit: int | None) -> None:
    """Add the options that `selection` reads."""
    group = parser.add_argument_group("which records (all conditions hold)")
    group.add_argument("--method", metavar="NAME", help="made by this method")
    group.add_argument("--recipe", metavar="ID", help="of this recipe; stats lists them")
    group.add_argument("--source-label", type=count, metavar="N", help="of this source class")
    group.add_argument("--target-label", type=count, metavar="N", help="of this target class")
    group.add_argument("--strength", type=number, metavar="S", help="of this strength")
    text = "all" if limit is None else limit
    group.add_argument(
        "--limit", type=count, default=limit, metavar="N", help=f"at most N (default {text})"
    )


def selection(options: argparse.Namespace, store: Store) -> Selection:
    """The records that the options ask for.

    Raises:
        CacheError: If they name a recipe that the store does not have.
    """
    return Selection(
        method=options.method,
        recipe=None if options.recipe is None else find_recipe(store, options.recipe),
        source_label=options.source_label,
        target_label=options.target_label,
        strength=options.strength,
        limit=options.limit,
    )


def add_classes(parser: argparse.ArgumentParser) -> None:
    """Add the option that `classes` reads."""
    parser.add_argument(
        "--classes",
        type=Path,
        metavar="FILE",
        help="class names in the order of the labels: a text file, a name a line, or the image "
        "folder of the training set",
    )


def classes(options: argparse.Namespace) -> ClassNames:
    """The class names asked for; without, labels stand for themselves.

    Raises:
        CacheError: If they cannot be read.
    """
    return ClassNames() if options.classes is None else read_class_names(options.classes)


def count(text: str) -> int:
    """A whole number from 0.

    Raises:
        argparse.ArgumentTypeError: If `text` is none.
    """
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise argparse.ArgumentTypeError(f"must be a whole number from 0, got {text!r}")
    return int(text)


def gib(text: str) -> float:
    """A size in GiB, more than 0.

    Raises:
        argparse.ArgumentTypeError: If `text` is none.
    """
    value = number(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"must be positive, got {text!r}")
    return value


def number(text: str) -> float:
    """A finite number.

    Raises:
        argparse.ArgumentTypeError: If `text` is none.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"must be a number, got {text!r}")
    return value


Tell: TypeAlias = Callable[[int, int | None], None]

"""Takes how many are done, and of how many where that is known."""

_WIDE = 10_000

"""Columns of a table that goes to a file or another program: its lines stay whole."""

_USUAL = ("method", "source_label", "target_label", "strength", "variant", "prompt")


def print_table(*heads: str, rows: Iterable[Iterable[str]]) -> None:
    """Print a table; nothing in it can steer the terminal."""
    table = Table(show_header=any(heads), box=None)
    for number, head in enumerate(heads, 1):
        table.add_column(head, overflow="fold", no_wrap=number < len(heads))
    for row in rows:
        table.add_row(*(plain(cell) for cell in row))
    width = None if sys.stdout.isatty() else _WIDE
    Console(markup=False, highlight=False, width=width).print(table)


def print_json(value: Any) -> None:
    """Print `value` as JSON."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def print_json_lines(rows: Iterable[Any]) -> None:
    """Print a JSON array, a row at a time, so that its length costs no memory."""
    separator = "[\n"
    for row in rows:
        sys.stdout.write(separator + json.dumps(row))
        separator = ",\n"
    sys.stdout.write("[]\n" if separator == "[\n" else "\n]\n")


@contextmanager
def progress(what: str, *, is_quiet: bool) -> Iterator[Tell]:
    """A bar on standard error, drawn where that is a terminal."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    disable = is_quiet or not sys.stderr.isatty()
    with Progress(*columns, console=Console(stderr=True), disable=disable, transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def request_words(request: Mapping[str, Any]) -> str:
    """A request in one line: of one with the usual fields, those by which people tell it."""
    usual = [name for name in _USUAL if request.get(name) is not None]
    return ", ".join(f"{name}={request[name]}" for name in usual or request)


def moment(seconds: float) -> str:
    """A Unix time in local time."""
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
    except (ValueError, OverflowError, OSError):  # a record may carry any float
        return f"{seconds} s"


def size(count: int) -> str:
    """A number of bytes."""
    amount, unit = float(count), "bytes"
    for larger in ("KiB", "MiB", "GiB"):
        if amount < 1024:
            break
        amount, unit = amount / 1024, larger
    return f"{amount:,.0f} {unit}" if unit == "bytes" else f"{amount:,.1f} {unit}"
