"""The live report of a training run: a row for each epoch, and below them the current moment."""

import time
from collections import deque
from collections.abc import Sequence
from types import TracebackType
from typing import Self, SupportsFloat

from rich.console import Console
from rich.live import Live

from online_aug.console import is_watched, open_console, print_line
from online_aug.reporting.metrics import EpochMetrics
from online_aug.reporting.tables import (
    GENERATED,
    GeneratorView,
    Now,
    draw_panel,
    epoch_heads,
    epoch_line,
    epoch_row,
    panel_line,
    print_summary,
)
from online_aug.request import Counts

__all__ = ["GeneratorView", "LiveReport", "print_summary"]

REDRAW_EVERY_S = 0.25
LINE_EVERY_S = 30.0
HEADS_EVERY_ROWS = 25


class LiveReport:
    """A report of the run, as a panel in a terminal and as plain lines elsewhere.

    A context manager. It has no thread, because loader workers may be forked while it is open: the
    screen changes only when one of its methods is called. Other output appears above the panel.
    """

    def __init__(
        self,
        total_epochs: int,
        steps_per_epoch: int,
        enabled: bool,
        *,
        ranks: int = 1,
        columns: Sequence[str] = GENERATED,
        console: Console | None = None,
    ) -> None:
        """Show nothing before it is entered.

        Args:
            total_epochs: Number of epochs of the whole run, including those before a resume.
            steps_per_epoch: Number of optimizer steps.
            enabled: False shows nothing, as on all ranks but the first.
            ranks: Number of ranks that train as fast as this one; multiplies the speed shown.
            columns: Columns of the table of epochs.
            console: The console to use; standard output by default.
        """
        self._total_epochs, self._steps_per_epoch, self._ranks = (
            total_epochs,
            steps_per_epoch,
            ranks,
        )
        self._columns = columns
        self._console = (console or open_console()) if enabled else None
        self._live: Live | None = None
        self._has_panel = False
        self._pace = Pace(total_epochs * steps_per_epoch)
        self._read_s = self._shown_s = float("-inf")
        self._rows = 0
        self._best = float("-inf")

    def __enter__(self) -> Self:
        """Choose the panel if a terminal is watched; the first step to be shown draws it."""
        self._has_panel = self._console is not None and is_watched(self._console)
        if not self._has_panel:
            self._shown_s = time.monotonic()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remove the panel, also after an error; rows and messages stay."""
        self._has_panel = False
        if self._live is not None:
            self._live.stop()
            self._live = None

    @property
    def left_s(self) -> float | None:
        """Time that the rest of the run takes; None before it is known."""
        return self._pace.left_s

    def message(self, text: str) -> None:
        """Print one line that stays, such as `generator: ready in 4.1 s`."""
        if self._console is not None:
            print_line(self._console, text)

    def step(
        self,
        epoch: int,
        step_in_epoch: int,
        loss: SupportsFloat,
        served: Counts,
        generator: GeneratorView | None,
    ) -> None:
        """Show the current step; call it after every step, most calls only look at the clock.

        Args:
            epoch: The epoch, from 0.
            step_in_epoch: Number of steps of this epoch that are done, from 1.
            loss: The loss of this step; a tensor is read only when it is shown, because reading it
                waits for its device.
            served: How this rank filled its slots since the start of the epoch.
            generator: The generation process; None if there is none.
        """
        now_s = time.monotonic()
        is_last = step_in_epoch == self._steps_per_epoch
        if self._console is None or not (is_last or now_s - self._read_s >= REDRAW_EVERY_S):
            return
        self._read_s = now_s
        steps = epoch * self._steps_per_epoch + step_in_epoch
        self._pace.read(now_s, epoch, steps, served.slots * self._ranks)
        if not self._has_panel and now_s - self._shown_s < LINE_EVERY_S:
            return
        self._shown_s = now_s
        self._show(
            Now(
                epoch=epoch,
                total_epochs=self._total_epochs,
                step_in_epoch=step_in_epoch,
                steps_per_epoch=self._steps_per_epoch,
                loss=float(loss),
                images_per_s=self._pace.images_per_s,
                left_s=self._pace.left_s,
                served=served,
                generator=generator,
            )
        )

    def epoch(self, metrics: EpochMetrics) -> None:
        """Print a finished epoch; its row stays."""
        if self._console is None:
            return
        is_best, self._best = metrics.val_top1 > self._best, max(metrics.val_top1, self._best)
        if not self._has_panel:
            print_line(self._console, epoch_line(metrics, self._total_epochs, self._columns))
            return
        if self._rows % HEADS_EVERY_ROWS == 0:
            self._console.print(epoch_heads(self._columns))
        self._rows += 1
        row = epoch_row(metrics, self._total_epochs, self._columns, is_best=is_best)
        self._console.print(row)

    def _show(self, now: Now) -> None:
        assert self._console  # else there is nothing to show
        if not self._has_panel:
            print_line(self._console, panel_line(now))
            return
        if self._live is None:  # not before: other displays have had the screen until now
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()
        self._live.update(draw_panel(now), refresh=True)


WINDOW_S = 5.0


class Pace:
    """The speed over the last seconds, and the time left at the mean speed of the whole run.

    The mean includes the pauses between epochs. Every reading brings its own time.
    """

    def __init__(self, total_steps: int) -> None:
        """Know neither speed nor time left before the second reading."""
        self._total_steps = total_steps
        self._first: tuple[float, int] | None = None
        self._recent: deque[tuple[float, int]] = deque()
        self._epoch = -1
        self.images_per_s: float | None = None
        self.left_s: float | None = None

    def read(self, now_s: float, epoch: int, steps: int, images: int) -> None:
        """Take a reading.

        Args:
            now_s: The time of a clock that never goes back.
            epoch: The epoch; a new one starts the count of images again.
            steps: Number of steps since the start of the run.
            images: Number of images since the start of the epoch.
        """
        if epoch != self._epoch:
            self._epoch = epoch
            self._recent.clear()
        self._recent.append((now_s, images))
        while len(self._recent) > 2 and now_s - self._recent[1][0] >= WINDOW_S:
            self._recent.popleft()
        began_s, before = self._recent[0]
        if now_s > began_s:
            self.images_per_s = (images - before) / (now_s - began_s)
        self._estimate(now_s, steps)

    def _estimate(self, now_s: float, steps: int) -> None:
        if self._first is None:
            self._first = (now_s, steps)
        began_s, first_step = self._first
        if steps > first_step:
            per_step_s = (now_s - began_s) / (steps - first_step)
            self.left_s = per_step_s * max(self._total_steps - steps, 0)
