"""One way to show that something takes a while: a bar in a terminal, lines every 10 s elsewhere."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from online_aug.reporting.terminal import is_watched, open_console, print_line
from online_aug.reporting.wording import duration

LINE_EVERY_S = 10.0


class Tally:
    """How far a piece of work is; `advance` is cheap enough to be called for every item."""

    def __init__(self, title: str, total: int) -> None:
        """Start the clock."""
        self.title, self.total, self.done, self.note = title, total, 0, ""
        self._started = time.monotonic()

    def advance(self, count: int = 1, note: str = "") -> None:
        """Count items done; `note` (such as `loss 0.12`) stays beside them until the next one."""
        self.done += count
        self.note = note or self.note

    @property
    def elapsed_s(self) -> float:
        """Since the work began."""
        return time.monotonic() - self._started

    def state(self) -> str:
        """The latest note and the time left at the speed so far, as far as they are known."""
        if not 0 < self.done < self.total:
            return self.note
        left = f"{duration(self.elapsed_s * (self.total - self.done) / self.done)} left"
        return f"{self.note}, {left}" if self.note else left


@contextmanager
def progress(
    title: str, total: int, *, enabled: bool = True, console: Console | None = None
) -> Iterator[Tally]:
    """Show how far `total` items are while the block runs; the block calls `advance`.

    In a terminal it is a bar with the remaining time. Elsewhere there is a first line and one every
    10 s, whether or not anything advanced. Either way a last line says how long it took. A thread
    does this: do not fork inside.

    Args:
        title: What is being done, such as `fine-tuning`.
        total: Number of items.
        enabled: Show it; false on all ranks but the first.
        console: Where; standard output by default.
    """
    tally = Tally(title, total)

    def line() -> str:
        return ", ".join(part for part in (f"{title}: {tally.done}/{total}", tally.state()) if part)

    with _shown(line, lambda: _bar(tally), enabled, console) as say:
        yield tally
        say(f"{title}: {tally.done}/{total} in {duration(tally.elapsed_s)}")


@contextmanager
def stage(title: str, *, enabled: bool = True, console: Console | None = None) -> Iterator[None]:
    """Show that something of unknown length goes on while the block runs, and how long it took.

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
