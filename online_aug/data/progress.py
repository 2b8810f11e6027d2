"""A progress bar for work that would otherwise be silent."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress

Report = Callable[[int, int], None]
"""Called with how much is done and how much there is."""


@contextmanager
def terminal_progress(description: str) -> Iterator[Report]:
    """A bar on standard error where that is a terminal, else nothing; gone when finished."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(description, total=None)

        def report(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield report
