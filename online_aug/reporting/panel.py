"""The live panel: where training is, what the batches are made of, what the generator does."""

from dataclasses import dataclass

from rich.console import RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from online_aug.records import Served
from online_aug.reporting.wording import byte_size, duration, rate, shares, whole_percent

MIX_COLOURS = {"real": "blue", "fresh": "green", "cached": "cyan", "starved": "yellow"}
BAR_CELLS = 24


@dataclass(frozen=True, kw_only=True)
class GeneratorView:
    """What the training process knows about the generation process."""

    state: str
    """A word or two, such as `starting`, `generating`, `paused`, `restarting`."""
    images_per_s: float
    generated: int
    """Images made in this run so far."""
    cache_entries: int
    cache_bytes: int
    samples_per_insert: float = 0.0
    """Times an image has been served on average."""


@dataclass(frozen=True, kw_only=True)
class Now:
    """One moment of training."""

    epoch: int
    """From 0."""
    total_epochs: int
    step_in_epoch: int
    """Steps of this epoch that are done."""
    steps_per_epoch: int
    loss: float
    images_per_s: float | None
    left_s: float | None
    served: Served
    """Since the start of the epoch."""
    generator: GeneratorView | None


def draw_panel(now: Now) -> RenderableType:
    """An empty line and four lines, always as many so that nothing jumps, 80 characters wide."""
    grid = Table.grid(padding=(0, 1))
    grid.add_column(style="bold", no_wrap=True, min_width=10)
    grid.add_column(no_wrap=True, width=BAR_CELLS)
    grid.add_column(no_wrap=True, overflow="ellipsis")
    grid.add_row("")
    grid.add_row("training", _steps_bar(now), _steps_text(now))
    beside = "  ".join(filter(None, [_left_text(now), _reuse_text(now)]))
    grid.add_row("speed", Text(speed_text(now)), Text(beside, "dim"))
    grid.add_row("batches", mix_bar(now.served, BAR_CELLS), mix_text(now.served))
    grid.add_row("generator", *_generator_texts(now.generator))
    return grid


def panel_line(now: Now) -> str:
    """The same in one plain line, for logs."""
    parts = [
        f"epoch {now.epoch + 1}/{now.total_epochs}",
        f"step {now.step_in_epoch}/{now.steps_per_epoch}",
        f"loss {now.loss:.3f}",
        speed_text(now),
        mix_text(now.served).plain,
    ]
    if now.generator is not None:
        parts.append(
            f"generator: {', '.join(text.plain for text in _generator_texts(now.generator))}"
        )
        parts.append(_reuse_text(now))
    return ", ".join([*parts, *([_left_text(now)] if now.left_s is not None else [])])


def speed_text(now: Now) -> str:
    """How many images a second are trained on."""
    return "-" if now.images_per_s is None else f"{rate(now.images_per_s)} images/s"


def mix_text(served: Served) -> Text:
    """The four shares with their names, in the colours of the bar."""
    text = Text(no_wrap=True)
    for name, share in shares(served).items():
        text.append("  " if text else "").append(
            f"{name} {whole_percent(share).replace(' ', '')}", MIX_COLOURS[name]
        )
    return text


def mix_bar(served: Served, cells: int) -> Text:
    """The four shares as one bar of exactly `cells` characters; dim while nothing was served."""
    bar, drawn, reached = Text(no_wrap=True), 0, 0.0
    for name, share in shares(served).items():
        reached += share
        until = round(reached * cells)
        bar.append("━" * (until - drawn), MIX_COLOURS[name])
        drawn = until
    return bar.append("━" * (cells - drawn), "bright_black")


def _steps_bar(now: Now) -> ProgressBar:
    return ProgressBar(
        now.steps_per_epoch,
        now.step_in_epoch,
        width=BAR_CELLS,
        complete_style="magenta",
        finished_style="magenta",
    )


def _steps_text(now: Now) -> Text:
    is_over = now.step_in_epoch >= now.steps_per_epoch
    end = "evaluating" if is_over else f"loss {now.loss:.3f}"
    return Text(
        f"epoch {now.epoch + 1}/{now.total_epochs}  "
        f"step {now.step_in_epoch}/{now.steps_per_epoch}  {end}"
    )


def _left_text(now: Now) -> str:
    return "" if now.left_s is None else f"{duration(now.left_s)} left"


def _reuse_text(now: Now) -> str:
    view = now.generator
    return "" if view is None else f"each image served {view.samples_per_insert:.1f} times"


def _generator_texts(view: GeneratorView | None) -> tuple[Text, Text]:
    if view is None:
        return Text("off", "dim"), Text()
    kept = f"cache {view.cache_entries:,} images, {byte_size(view.cache_bytes)}"
    return (
        Text(f"{view.state}, {rate(view.images_per_s)}/s"),
        Text(f"{view.generated:,} made, {kept}"),
    )
