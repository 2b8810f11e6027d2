"""Which console there is, and whether a person watches it."""

import os
from collections.abc import Mapping
from functools import cache

from rich.console import Console


@cache
def open_console() -> Console:
    """The console on standard output, one for all: only then can displays share the screen."""
    return Console(highlight=False)


def is_watched(console: Console, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether lines may be redrawn: a real terminal, able to move its cursor, not a CI log."""
    if environment.get("CI", "").lower() not in ("", "0", "false"):
        return False
    return console.is_terminal and not console.is_dumb_terminal and _shows_unicode(console)


def print_line(console: Console, text: str) -> None:
    """Print one line as it is: no markup, no wrapping, and at once also into a pipe."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)
    console.file.flush()


def _shows_unicode(console: Console) -> bool:
    return console.encoding.lower().startswith("utf")
