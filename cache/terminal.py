"""What the commands print: tables for people, JSON for programs, progress on standard error."""

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

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


def plain(text: str) -> str:
    """`text` without what would steer a terminal: requests and file names come from elsewhere."""
    return "".join(
        letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text
    )


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
