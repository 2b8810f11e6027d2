"""The last thing a run prints."""

from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from online_aug.reporting.metrics import Summary
from online_aug.reporting.panel import mix_text
from online_aug.reporting.wording import duration, percent, whole_percent

WORST_CLASSES = 5


def print_summary(summary: Summary, run_dir: Path, console: Console) -> None:
    """Print what came out, what it was made of, how long it took and where it lies."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in _rows(summary, run_dir):
        grid.add_row(name, value)
    console.print(
        Panel(grid, title="Finished", title_align="left", border_style="green", expand=False)
    )


def _rows(summary: Summary, run_dir: Path) -> list[tuple[str, Text]]:
    best = f"{percent(summary.top1_best_val)} (epoch {summary.best_val_epoch + 1})"
    return [
        ("test top1, last epoch", Text(percent(summary.top1), "bold green")),
        ("test top1, best validation", Text(best)),
        ("test top5, last epoch", Text(percent(summary.top5))),
        *((title, Text(_listed(shares))) for title, shares in summary.parts.items()),
        (_worst_title(summary.per_class), Text(_worst(summary.per_class))),
        ("images served", mix_text(summary.served)),
        ("", Text(_served_counts(summary), "dim")),
        ("images generated", Text(summary.made_text)),
        ("generator restarts", _restarts(summary.generator_restarts)),
        ("first step after", Text(duration(summary.first_step_s))),
        ("whole run", Text(f"{duration(summary.wall_s)}, {summary.epochs} epochs")),
        ("run directory", Text(str(run_dir), "cyan")),
    ]


def _served_counts(summary: Summary) -> str:
    return (
        f"{summary.served_real:,} real, {summary.served_fresh:,} fresh, "
        f"{summary.served_cached:,} cached, {summary.starved:,} starved"
    )


def _restarts(count: int) -> Text:
    return Text(f"{count}", "bold yellow" if count else "")


def _worst_title(per_class: Mapping[str, float]) -> str:
    return "worst classes" if len(per_class) > WORST_CLASSES else "classes, worst first"


def _worst(per_class: Mapping[str, float]) -> str:
    worst = sorted(per_class.items(), key=lambda entry: entry[1])[:WORST_CLASSES]
    return _listed(dict(worst))


def _listed(shares: Mapping[str, float]) -> str:
    return ", ".join(
        f"{name}: {whole_percent(share).replace(' ', '')}" for name, share in shares.items()
    )
