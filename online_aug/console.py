"""The console, progress bars and figures in words, for a person who watches a run.

Progress is a bar in a terminal and a line every 10 s elsewhere. Figures are ASCII only, so that
every log and terminal can show them.
"""

import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from typing import TypeVar

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

LINE_EVERY_S = 10.0
Item = TypeVar("Item")
Report = Callable[[int, int], None]
"""A function that takes how many items are done and how many there are."""


@cache
def open_console() -> Console:
    """Return the console on standard output; all displays must share it to share the screen."""
    return Console(highlight=False)


def open_side_console() -> Console:
    """Return the console on standard error, for progress beside a result that others read."""
    return Console(stderr=True, highlight=False)


def is_watched(console: Console, environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether lines may be redrawn: in a terminal that can move its cursor, not in CI."""
    if environment.get("CI", "").lower() not in ("", "0", "false"):
        return False
    has_unicode = console.encoding.lower().startswith("utf")
    return console.is_terminal and not console.is_dumb_terminal and has_unicode


def print_line(console: Console, text: str) -> None:
    """Print one line as it is, without markup or wrapping, and flush it."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)
    console.file.flush()


class Tally:
    """How many of a number of items are done."""

    def __init__(self, title: str, total: int) -> None:
        """Start the clock."""
        self.title, self.total, self.done, self.note = title, total, 0, ""
        self._started = time.monotonic()

    def advance(self, count: int = 1, note: str = "") -> None:
        """Count items as done; cheap enough to be called for every item.

        Args:
            count: Number of items.
            note: A remark such as `loss 0.12`, shown until the next one replaces it.
        """
        self.done += count
        self.note = note or self.note

    def update(self, done: int, total: int) -> None:
        """Set how many items are done and how many there are."""
        self.done, self.total = done, total

    @property
    def elapsed_s(self) -> float:
        """Seconds since the work began."""
        return time.monotonic() - self._started

    def state(self) -> str:
        """Return the latest note and the time left at the speed so far, as far as known."""
        if not 0 < self.done < self.total:
            return self.note
        left = f"{duration(self.elapsed_s * (self.total - self.done) / self.done)} left"
        return f"{self.note}, {left}" if self.note else left


@contextmanager
def progress(
    title: str, total: int, *, enabled: bool = True, console: Console | None = None
) -> Iterator[Tally]:
    """Show how many of `total` items are done while the block runs; the block counts them.

    A terminal shows a bar with the remaining time. Elsewhere a line is printed at the start and
    every 10 s, whether or not anything advanced. Either way a last line says how long it took. A
    thread does this: do not fork inside.

    Args:
        title: The name of the work, such as `fine-tuning`.
        total: Number of items.
        enabled: False shows nothing, as on all ranks but the first.
        console: The console to use; standard output by default.
    """
    tally = Tally(title, total)

    def line() -> str:
        return ", ".join(part for part in (f"{title}: {tally.done}/{total}", tally.state()) if part)

    with _shown(line, lambda: _bar(tally), enabled, console) as say:
        yield tally
        say(f"{title}: {tally.done}/{total} in {duration(tally.elapsed_s)}")


def counted(title: str, items: Sequence[Item], *, console: Console | None = None) -> Iterator[Item]:
    """Iterate over items and show how many are done, as `progress` does."""
    with progress(title, len(items), console=console) as tally:
        for item in items:
            yield item
            tally.advance()


@contextmanager
def stage(title: str, *, enabled: bool = True, console: Console | None = None) -> Iterator[None]:
    """Show that work of unknown length goes on while the block runs, and how long it took.

    As `progress`, with a spinner in a terminal. A thread does this: do not fork inside.
    """
    clock = Tally(title, 0)
    spinner = Spinner("dots", style="cyan")

    def line() -> str:
        return f"{title} ... {duration(clock.elapsed_s)}"

    def spinning() -> RenderableType:
        spinner.update(text=Text(line()))
        return spinner

    with _shown(line, spinning, enabled, console) as say:
        yield
        say(f"{title}: done in {duration(clock.elapsed_s)}")


@contextmanager
def terminal_progress(title: str) -> Iterator[Report]:
    """Show a bar on standard error if that is a terminal, else nothing; it goes away at the end."""
    console = Console(stderr=True)
    tally = Tally(title, 0)
    with _shown(tally.state, lambda: _bar(tally), is_watched(console), console):
        yield tally.update


@contextmanager
def _shown(
    line: Callable[[], str],
    picture: Callable[[], RenderableType],
    enabled: bool,
    console: Console | None,
) -> Iterator[Callable[[str], None]]:
    if not enabled:
        yield lambda text: None
        return
    shown_on = console or open_console()
    watch: AbstractContextManager[object]
    if is_watched(shown_on):
        watch = Live(get_renderable=picture, console=shown_on, refresh_per_second=8, transient=True)
    else:
        watch = _lines(line, shown_on)
    last: list[str] = []
    with watch:
        yield last.append
    for text in last:
        print_line(shown_on, text)


@contextmanager
def _lines(line: Callable[[], str], console: Console) -> Iterator[None]:
    over = threading.Event()

    def talk() -> None:
        while not over.wait(LINE_EVERY_S):
            print_line(console, line())

    print_line(console, line())
    thread = threading.Thread(target=talk, name="progress lines", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _bar(tally: Tally) -> RenderableType:
    grid = Table.grid(padding=(0, 1), expand=True)
    grid.add_column(no_wrap=True)
    grid.add_column(ratio=1, min_width=10)
    grid.add_column(no_wrap=True, justify="right")
    grid.add_column(no_wrap=True, min_width=24)
    bar = ProgressBar(
        max(tally.total, 1), tally.done, complete_style="cyan", finished_style="green"
    )
    grid.add_row(
        Text(tally.title), bar, Text(f"{tally.done}/{tally.total}"), Text(tally.state(), "dim")
    )
    return grid


def percent(share: float) -> str:
    """Write a share in [0, 1] in percent with one decimal; NaN is a dash."""
    return "-" if math.isnan(share) else f"{100 * share:.1f} %"


def whole_percent(share: float) -> str:
    """Write a share in [0, 1] in whole percent, never 0 % for some or 100 % for not all."""
    if 0 < share < 0.01:
        return "<1 %"
    return ">99 %" if 0.99 < share < 1 else f"{100 * share:.0f} %"


def amount(count: int, noun: str) -> str:
    """Write a number of things, such as `1 step` or `1,200 steps`.

    Example:
        >>> amount(1, "step"), amount(1200, "step")
        ('1 step', '1,200 steps')
    """
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def rate(per_s: float) -> str:
    """Write a rate with two or three significant digits."""
    if not math.isfinite(per_s):
        return "-"
    return f"{per_s:,.0f}" if per_s >= 100 else f"{per_s:.1f}" if per_s >= 1 else f"{per_s:.2f}"


def duration(seconds: float) -> str:
    """Write a time in its two largest units."""
    if not math.isfinite(seconds):
        return "-"
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest_s = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest_s:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"
