"""What the subcommands' arguments have in common."""

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from cache.exchange.names import ClassNames, read_class_names
from cache.selection import Selection, find_recipe
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
