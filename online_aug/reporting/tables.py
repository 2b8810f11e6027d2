"""The live report as tables for a terminal and as plain lines for a log.

First one moment of training, then a finished epoch, then the summary at the end of a run.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cache.text import byte_size
from online_aug.console import amount, duration, percent, rate, whole_percent
from online_aug.reporting.metrics import EpochMetrics, Summary
from online_aug.reporting.refusals import refusal_warning
from online_aug.reporting.run_directory import REPORT_FILE
from online_aug.request import Counts

MIX_COLOURS = {
    "real": "blue", "fresh": "green", "cached": "cyan", "composed": "magenta", "starved": "yellow",
}  # fmt: skip
BAR_CELLS = 24
WORST = 5
COLUMN_WIDTHS = {
    "epoch": 7, "loss": 7, "val top1": 9, "images/s": 9, "real": 6, "fresh": 6, "cached": 7,
    "composed": 9, "starved": 8, "made": 6, "made/s": 7, "cache": 8,
}  # fmt: skip
"""Columns of the table of epochs and their widths in characters; at most 80 are shown together."""
GENERATED = tuple(name for name in COLUMN_WIDTHS if name != "composed")
"""Columns of a run whose synthetic images a generator makes."""
COMPOSED = ("epoch", "loss", "val top1", "images/s", "real", "composed", "starved")
"""Columns of a run whose synthetic images are composed without one."""
BOTH = (*COLUMN_WIDTHS,)[:-2]
"""Columns of a run with images of both kinds."""


@dataclass(frozen=True, kw_only=True)
class GeneratorView:
    """The state of the generation process as the training process knows it."""

    state: str
    """A word or two, such as `starting`, `generating`, `paused`, `restarting`."""
    images_per_s: float
    generated: int
    """Number of images made in this run so far."""
    cache_entries: int
    cache_bytes: int
    to_come: int = 0
    """Number of images of the plan that are still to be made."""
    samples_per_insert: float = 0.0
    """How often a generated image has been served on average."""
    refused_shares: Mapping[str, float] = field(default_factory=dict)
    """Share of the plan that its methods refuse to make, by reason."""


@dataclass(frozen=True, kw_only=True)
class Now:
    """One moment of training."""

    epoch: int
    """The current epoch, from 0."""
    total_epochs: int
    step_in_epoch: int
    """Number of steps of this epoch that are done."""
    steps_per_epoch: int
    loss: float
    images_per_s: float | None
    left_s: float | None
    served: Counts
    """How slots were filled since the start of the epoch."""
    generator: GeneratorView | None

    def parts(self) -> dict[str, list[str]]:
        """Return the texts of this moment, under the head of their row in the panel."""
        is_over = self.step_in_epoch >= self.steps_per_epoch
        speed = "-" if self.images_per_s is None else f"{rate(self.images_per_s)} images/s"
        left = [] if self.left_s is None else [f"{duration(self.left_s)} left"]
        view = self.generator
        return {
            "training": [
                f"epoch {self.epoch + 1}/{self.total_epochs}",
                f"step {self.step_in_epoch}/{self.steps_per_epoch}",
                "evaluating" if is_over else f"loss {self.loss:.3f}",
            ],
            "speed": [speed, *left, *([f"each image served {_times(view)}"] if view else [])],
            "batches": [mix_text(self.served).plain],
            "generator": ["off"] if view is None else _generator_parts(view),
        }


def draw_panel(now: Now) -> RenderableType:
    """Draw an empty line and four lines of 80 characters; their number never changes."""
    parts = now.parts()
    grid = Table.grid(padding=(0, 1))
    grid.add_column(style="bold", no_wrap=True, min_width=10)
    grid.add_column(no_wrap=True, width=BAR_CELLS)
    grid.add_column(no_wrap=True, overflow="ellipsis")
    grid.add_row("")
    grid.add_row("training", _steps_bar(now), Text("  ".join(parts["training"])))
    speed, *beside = parts["speed"]
    grid.add_row("speed", Text(speed), Text("  ".join(beside), "dim"))
    grid.add_row("batches", mix_bar(now.served, BAR_CELLS), mix_text(now.served))
    state, *made = parts["generator"]
    grid.add_row("generator", Text(state, "" if now.generator else "dim"), Text(", ".join(made)))
    return grid


def panel_line(now: Now) -> str:
    """Return the texts of the panel as one plain line."""
    parts = now.parts()
    first, *made = parts.pop("generator")
    return ", ".join([*sum(parts.values(), []), f"generator {first}", *made])


def mix_text(served: Counts) -> Text:
    """Write the shares with their names, in the colours of the bar."""
    text = Text(no_wrap=True)
    for name, share in shares(served).items():
        text.append("  " if text else "").append(
            f"{name} {whole_percent(share).replace(' ', '')}", MIX_COLOURS[name]
        )
    return text


def mix_bar(served: Counts, cells: int) -> Text:
    """Draw the shares as one bar of exactly `cells` characters; grey if nothing was served."""
    bar, drawn, reached = Text(no_wrap=True), 0, 0.0
    for name, share in shares(served).items():
        reached += share
        until = round(reached * cells)
        bar.append("━" * (until - drawn), MIX_COLOURS[name])
        drawn = until
    return bar.append("━" * (cells - drawn), "bright_black")


def shares(served: Counts) -> dict[str, float]:
    """Return the share of slots filled in each way that the run has, in [0, 1]; 0 without slots."""
    total = max(1, served.slots)
    return {name: count / total for name, count in filled(served).items()}


def filled(served: Counts) -> dict[str, int]:
    """Return how many slots were filled in each way that the run has."""
    generated = {"fresh": served.fresh, "cached": served.cached}
    if served.composed and not any(generated.values()):
        generated = {}
    composed = {"composed": served.composed} if served.composed else {}
    return {"real": served.real, **generated, **composed, "starved": served.starved}


def _steps_bar(now: Now) -> ProgressBar:
    return ProgressBar(
        now.steps_per_epoch,
        now.step_in_epoch,
        width=BAR_CELLS,
        complete_style="magenta",
        finished_style="magenta",
    )


def _times(view: GeneratorView) -> str:
    return f"{view.samples_per_insert:.1f} times"


def _generator_parts(view: GeneratorView) -> list[str]:
    return [
        f"{view.state}, {rate(view.images_per_s)}/s",
        *_refused(view.refused_shares),
        f"{view.generated:,} made",
        *_to_come(view),
        f"cache {view.cache_entries:,} images",
        byte_size(view.cache_bytes),
    ]


def _to_come(view: GeneratorView) -> list[str]:
    if not view.to_come:
        return []
    said = f"{view.to_come:,} to come"
    return [
        f"{said} in {duration(view.to_come / view.images_per_s)}" if view.images_per_s else said
    ]


def _refused(shares: Mapping[str, float]) -> list[str]:
    if refusal_warning(shares) is None:
        return []
    reason = max(shares, key=lambda name: shares[name]).removeprefix("saliency: ")
    return [f"{whole_percent(sum(shares.values())).replace(' ', '')} refused: {reason}"]


def epoch_heads(columns: Sequence[str] = GENERATED) -> Text:
    """Write the heads of the columns of `epoch_row`."""
    heads = Text(no_wrap=True, overflow="crop", style="bold")
    for name in columns:
        heads.append(f"{name:>{COLUMN_WIDTHS[name]}}", MIX_COLOURS.get(name))
    return heads


def epoch_row(
    metrics: EpochMetrics, total_epochs: int, columns: Sequence[str] = GENERATED, *, is_best: bool
) -> Text:
    """Write one epoch as a row of fixed columns; the best validation so far stands out."""
    styles = {**MIX_COLOURS, "val top1": "bold green" if is_best else ""}
    row, cells = Text(no_wrap=True, overflow="crop"), _cells(metrics, total_epochs)
    for name in columns:
        row.append(f"{cells[name]:>{COLUMN_WIDTHS[name]}}", styles.get(name))
    return row


def epoch_line(metrics: EpochMetrics, total_epochs: int, columns: Sequence[str] = GENERATED) -> str:
    """Return one epoch as a plain line that explains itself."""
    cells = _cells(metrics, total_epochs)
    said = (
        f"epoch {cells['epoch']}: loss {cells['loss']}, val top1 {cells['val top1']}, "
        f"{cells['images/s']} images/s, {mix_text(metrics.served).plain}{_skipped(metrics.skipped)}"
    )
    if "made" not in columns:
        return said
    return (
        f"{said}, generator {cells['made']} made, {cells['made/s']} images/s, "
        f"cache {metrics.cache_entries:,} images, {cells['cache']}"
    )


def _cells(metrics: EpochMetrics, total_epochs: int) -> dict[str, str]:
    served = metrics.served
    counts = {name: getattr(served, name) for name in MIX_COLOURS}
    mix = {name: whole_percent(count / max(1, served.slots)) for name, count in counts.items()}
    return {
        "epoch": f"{metrics.epoch + 1}/{total_epochs}",
        "loss": f"{metrics.train_loss:.3f}",
        "val top1": percent(metrics.val_top1),
        "images/s": rate(metrics.images_per_s),
        **mix,
        "made": f"{metrics.generated:,}",
        "made/s": rate(metrics.generated_per_s),
        "cache": byte_size(metrics.cache_bytes),
    }


def print_summary(summary: Summary, run_dir: Path, console: Console) -> None:
    """Print the accuracy of a finished run, what it was trained on, its duration and its folder."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in _rows(summary, run_dir):
        grid.add_row(name, value)
    console.print(
        Panel(grid, title="Finished", title_align="left", border_style="green", expand=False)
    )


def _rows(summary: Summary, run_dir: Path) -> list[tuple[str, Text]]:
    best = summary.best_on_validation
    epochs = amount(summary.epochs, "epoch") + _skipped(summary.skipped)
    return [
        *_unserved(summary),
        ("test top1, last epoch", Text(percent(summary.top1), "bold green")),
        *([("test top1, best validation", Text(best))] if best else []),
        *([("test top5, last epoch", Text(top5))] if (top5 := summary.told_top5) else []),
        *_worst_group(summary),
        *([("training images", Text(_listed(summary.per_shots)))] if summary.per_shots else []),
        (_worst_title("classes", summary.per_class), Text(_worst(summary.per_class))),
        ("images served", mix_text(summary.served)),
        ("", Text(_served_counts(summary), "dim")),
        *_made(summary),
        ("first step after", Text(_starts(summary))),
        ("whole run", Text(f"{duration(summary.wall_s)}, {epochs}")),
        ("report", Text(str(run_dir / REPORT_FILE), "cyan")),
    ]


def _unserved(summary: Summary) -> list[tuple[str, Text]]:
    served = summary.served
    if not served.starved or served.synthetic:
        return []
    said = (
        "no generated image was served: training was over before there was one. Make them first "
        "(online-aug fill), or wait for them (mixing.starvation=wait)"
    )
    return [("", Text(said, "bold yellow"))]


def _served_counts(summary: Summary) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in filled(summary.served).items())


def _times_served(summary: Summary) -> list[tuple[str, Text]]:
    if not summary.most_served:
        return []
    said = f"{summary.samples_per_insert:.1f} times on average, at most {summary.most_served}"
    return [("each image served", Text(said))]


def _starts(summary: Summary) -> str:
    said = duration(summary.first_step_s)
    if summary.first_fresh_s is None:
        return said
    return f"{said}, first fresh image after {duration(summary.first_fresh_s)}"


def _made(summary: Summary) -> list[tuple[str, Text]]:
    """Return the rows on what the generator made, and on what could not be composed."""
    rows = [("not composed", Text(summary.refusals_text))] if summary.refusals else []
    if warning := refusal_warning(summary.refused_shares):
        rows.append(("refused", Text(warning, "bold yellow")))
    if summary.served_composed and not summary.made:
        return rows
    n = summary.generator_restarts
    return [
        *rows,
        ("images generated", Text(summary.made_text)),
        *_times_served(summary),
        ("generator restarts", Text(f"{n}", "bold yellow" if n else "")),
    ]


def _skipped(steps: int) -> str:
    return f", {amount(steps, 'step')} skipped" if steps else ""


def _worst_group(summary: Summary) -> list[tuple[str, Text]]:
    if summary.worst_group is None:
        return []
    return [
        ("test worst group", Text(percent(summary.worst_group), "bold")),
        (_worst_title("groups", summary.per_group), Text(_worst(summary.per_group))),
    ]


def _worst_title(parts: str, shares: Mapping[str, float]) -> str:
    return f"worst {parts}" if len(shares) > WORST else f"{parts}, worst first"


def _worst(shares: Mapping[str, float]) -> str:
    worst = sorted(shares.items(), key=lambda entry: entry[1])[:WORST]
    return _listed(dict(worst))


def _listed(shares: Mapping[str, float]) -> str:
    return ", ".join(
        f"{name}: {whole_percent(share).replace(' ', '')}" for name, share in shares.items()
    )
