"""Shared parts of the commands: arguments, tables for people, JSON for programs, progress bar."""

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

from cache.exchange.metadata import ClassNames, read_class_names
from cache.exchange.records import Selection, find_data_set, find_recipe
from cache.store import Store
from cache.text import printable

OnProgress: TypeAlias = Callable[[int, int | None], None]
"""Takes how many are done, and out of how many if that is known."""

_PIPE_COLUMNS = 10_000
"""Width of a table that goes to a file or another program, so that its lines stay whole."""

_MAIN_FIELDS = ("method", "source_label", "target_label", "strength", "variant", "prompt")
"""Fields by which people tell requests apart."""


@dataclass(frozen=True)
class Command:
    """A subcommand of `python -m cache`."""

    name: str
    summary: str
    """What it does, in one line."""
    examples: str
    """Lines of `arguments    what that does`."""
    run: Callable[[argparse.Namespace], int]
    """Does it and returns the exit status."""
    add_arguments: Callable[[argparse.ArgumentParser], None]


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and exit with status 2."""
        self.exit(2, f"error: {printable(message)} (see {self.prog} --help)\n")


def add_filters(
    parser: argparse.ArgumentParser, *, limit: int | None, default: str | None = None
) -> None:
    """Add the options that `selection` reads.

    Args:
        parser: Gets the options.
        limit: Default number of records; None for all.
        default: How the help tells it, if not by that number.
    """
    group = parser.add_argument_group("which records (all conditions hold)")
    group.add_argument("--method", metavar="NAME", help="made by this method")
    group.add_argument("--recipe", metavar="ID", help="of this recipe; stats lists them")
    group.add_argument(
        "--data-set", metavar="NAME", help="of this data set, or the start of its name"
    )
    group.add_argument("--source-label", type=count, metavar="N", help="of this source class")
    group.add_argument("--target-label", type=count, metavar="N", help="of this target class")
    group.add_argument("--strength", type=number, metavar="S", help="of this strength")
    text = default or ("all" if limit is None else limit)
    group.add_argument(
        "--limit", type=count, default=limit, metavar="N", help=f"at most N (default {text})"
    )


def selection(options: argparse.Namespace, store: Store) -> Selection:
    """Return which records the options of `add_filters` ask for.

    Raises:
        CacheError: If they name a recipe or data set that the store does not have.
    """
    return Selection(
        method=options.method,
        recipe=None if options.recipe is None else find_recipe(store, options.recipe),
        data_set=None if options.data_set is None else find_data_set(store, options.data_set),
        source_label=options.source_label,
        target_label=options.target_label,
        strength=options.strength,
        limit=options.limit,
    )


def add_classes(parser: argparse.ArgumentParser) -> None:
    """Add the option that `class_names` reads."""
    parser.add_argument(
        "--classes",
        type=Path,
        metavar="FILE",
        help="class names in the order of the labels: a text file with a name a line, or the "
        "image folder of the training set",
    )


def class_names(options: argparse.Namespace, *, gamma: float | None = None) -> ClassNames:
    """Return the class names of `--classes`; without that option records name their own.

    `gamma` is as in `ClassNames`.

    Raises:
        CacheError: If they cannot be read.
    """
    if options.classes is None:
        return ClassNames(gamma=gamma)
    return read_class_names(options.classes, gamma=gamma)


def count(text: str) -> int:
    """Read a whole number from 0.

    Raises:
        argparse.ArgumentTypeError: If `text` is something else.
    """
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise argparse.ArgumentTypeError(f"must be a whole number from 0, got {text!r}")
    return int(text)


def positive(text: str) -> float:
    """Read a number above 0, such as a size in GiB.

    Raises:
        argparse.ArgumentTypeError: If `text` is something else.
    """
    value = number(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"must be positive, got {text!r}")
    return value


def number(text: str) -> float:
    """Read a finite number.

    Raises:
        argparse.ArgumentTypeError: If `text` is something else.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"must be a number, got {text!r}")
    return value


def print_table(*heads: str, rows: Iterable[Iterable[str]]) -> None:
    """Print a table whose cells cannot steer the terminal."""
    table = Table(show_header=any(heads), box=None)
    for place, head in enumerate(heads, 1):
        table.add_column(head, overflow="fold", no_wrap=place < len(heads))
    for row in rows:
        table.add_row(*(printable(cell) for cell in row))
    width = None if sys.stdout.isatty() else _PIPE_COLUMNS
    console = Console(markup=False, highlight=False, width=width)
    with console.capture() as printed:
        console.print(table)
    sys.stdout.writelines(f"{line.rstrip()}\n" for line in printed.get().splitlines())


def print_json(value: Any) -> None:
    """Print `value` as JSON."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def print_json_lines(rows: Iterable[Any]) -> None:
    """Print a JSON array row by row, so that a long one needs no memory."""
    separator = "[\n"
    for row in rows:
        sys.stdout.write(separator + json.dumps(row))
        separator = ",\n"
    sys.stdout.write("[]\n" if separator == "[\n" else "\n]\n")


@contextmanager
def progress(what: str, *, is_quiet: bool) -> Iterator[OnProgress]:
    """Show a bar on standard error, if that is a terminal, while the block runs."""
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


def request_line(request: Mapping[str, Any], classes: Mapping[str, str]) -> str:
    """Tell a request in one line by the fields that people know, by all if it has none of them."""
    main = [name for name in _MAIN_FIELDS if request.get(name) is not None]
    fields = {name: request[name] for name in main or request}
    for side in ("source", "target"):
        label, name = f"{side}_label", classes.get(f"{side}_class")
        if label in fields and name is not None:
            fields[label] = f"{fields[label]} ({name})"
    return ", ".join(f"{name}={value}" for name, value in fields.items())


def local_time(unix_s: float) -> str:
    """Format a Unix time as local time."""
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(unix_s))
    except (ValueError, OverflowError, OSError):  # a record may carry any float
        return f"{unix_s} s"
