"""The answer of a study: means with 95 % intervals, tables as Markdown and CSV, and charts."""

import csv
import math
import re
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import NamedTuple, TypeAlias

from online_aug.comparison.paired import CONFIDENCE, estimate
from online_aug.files import write_atomically

_SEED = re.compile(r"-seed\d+$")
"""The end of a run's name in a comparison."""
_COLOURS = ("#4c78a8", "#f28e2b", "#a5abb8", "#59a14f", "#b07aa1", "#c0392b")


class Interval(NamedTuple):
    """A mean or a share with its 95 % interval; both ends are NaN if it is not known."""

    value: float
    low: float
    high: float
    is_share: bool = True
    """Whether it is shown in percent."""

    @property
    def text(self) -> str:
        """Value and interval, a share in percent."""
        if math.isnan(self.value):
            return "-"
        scale, unit = (100, " %") if self.is_share else (1, "")
        value = f"{scale * self.value:.1f}{unit}"
        if math.isnan(self.low):
            return value
        return f"{value} ({scale * self.low:.1f} to {scale * self.high:.1f})"


def exact(value: float, *, is_share: bool = True) -> Interval:
    """Return a value that is shown without an interval."""
    return Interval(value, math.nan, math.nan, is_share)


Value: TypeAlias = str | int | float | Interval
Row: TypeAlias = Mapping[str, Value]


def share(hits: int, total: int) -> Interval:
    """Return a share with Wilson's interval, which stays within 0 and 1."""
    from scipy.stats import binomtest

    if not total:
        return Interval(math.nan, math.nan, math.nan)
    found = binomtest(int(hits), int(total)).proportion_ci(CONFIDENCE, "wilson")
    return Interval(hits / total, float(found.low), float(found.high))


def mean(values: Sequence[float], *, is_share: bool = True) -> Interval:
    """Return a mean with Student's interval, which a single value does not have."""
    found = estimate(values)
    low, high = found.mean - found.half_width, found.mean + found.half_width
    return Interval(found.mean, low, high, is_share)


def over_seeds(rows: Sequence[Row], key: str) -> list[Row]:
    """Return a row for the runs `NAME-seed0`, `NAME-seed1`, ...: means with Student's interval.

    Args:
        rows: One for each run.
        key: The column that names the run. The others hold intervals.

    Returns:
        Nothing if no name has several runs. A name with one run has no interval.
    """
    groups: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        groups.setdefault(_SEED.subn("", str(row[key])), []).append(row)
    if len(groups) == len(rows):
        return []
    found: list[Row] = []
    for (name, _), members in groups.items():
        columns = [head for head in members[0] if head != key]
        values = {head: mean([interval_of(row, head).value for row in members]) for head in columns}
        found.append({key: name, "seeds": len(members), **values})
    return found


def interval_of(row: Row, key: str) -> Interval:
    """Return the interval that a row has under a key."""
    found = row[key]
    assert isinstance(found, Interval)
    return found


def markdown_table(rows: Sequence[Row]) -> str:
    """Return rows as a Markdown table; its heads are their keys."""
    heads = list(dict.fromkeys(key for row in rows for key in row))
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        lines.append(f"| {' | '.join(_shown(row.get(head, '')) for head in heads)} |")
    return "\n".join(lines) + "\n"


def _shown(value: Value) -> str:
    if isinstance(value, Interval):
        return value.text
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def csv_text(rows: Sequence[Row]) -> str:
    """Return rows as CSV; an interval takes three columns."""
    flat = [_flat(row) for row in rows]
    out = StringIO()
    heads = list(dict.fromkeys(key for row in flat for key in row))
    writer = csv.DictWriter(out, heads, lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return out.getvalue()


def _flat(row: Row) -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in row.items():
        if isinstance(value, Interval):
            ends = {key: value.value, f"{key}, low": value.low, f"{key}, high": value.high}
            found |= {head: "" if math.isnan(end) else f"{end:.6g}" for head, end in ends.items()}
        else:
            found[key] = f"{value:.6g}" if isinstance(value, float) else str(value)
    return found


def write_answer(folder: Path, name: str, text: str, rows: Sequence[Row]) -> None:
    """Write the answer as Markdown and its rows as CSV into a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / f"{name}.md", text)
    write_atomically(folder / f"{name}.csv", csv_text(rows))


class Chart(NamedTuple):
    """The words of a chart."""

    title: str
    x: str
    y: str
    is_share: bool = True
    """Whether the values are shares, shown in percent from 0 to 100."""


def draw_lines(
    path: Path, chart: Chart, series: Mapping[str, Sequence[tuple[float, Interval]]]
) -> None:
    """Draw lines over numbers with their intervals as bands, into a PNG file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.8), dpi=120, layout="constrained")
    axes = figure.subplots()
    scale = 100 if chart.is_share else 1
    for number, (name, points) in enumerate(series.items()):
        places = [place for place, _ in points]
        lows = [scale * found.low for _, found in points]
        highs = [scale * found.high for _, found in points]
        values = [scale * found.value for _, found in points]
        colour = _COLOURS[number % len(_COLOURS)]
        dashes = "-" if number < len(_COLOURS) else "--"
        axes.plot(places, values, dashes, marker="o", markersize=4, color=colour, label=name)
        axes.fill_between(places, lows, highs, color=colour, alpha=0.15, linewidth=0)
    _finish(figure, axes, chart)
    if len(series) > 1:
        axes.legend(frameon=False)
    _save(figure, path)


def draw_bars(path: Path, chart: Chart, bars: Mapping[str, Interval]) -> None:
    """Draw a bar for each name with its interval as a whisker, into a PNG file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.6 + 0.42 * len(bars)), dpi=120, layout="constrained")
    axes = figure.subplots()
    scale = 100 if chart.is_share else 1
    for number, (name, found) in enumerate(bars.items()):
        axes.barh(name, scale * found.value, color=_COLOURS[0], height=0.6)
        if not math.isnan(found.low):
            ends = [scale * found.low, scale * found.high]
            axes.plot(ends, [number, number], color="#1f2430", linewidth=1.5)
    axes.margins(y=0.5 / len(bars))
    axes.invert_yaxis()
    _finish(figure, axes, chart._replace(x=chart.y, y=chart.x), is_across=True)
    _save(figure, path)


def draw_points(path: Path, chart: Chart, points: Mapping[str, tuple[Interval, Interval]]) -> None:
    """Draw a point with its name and the intervals of both values, into a PNG file.

    A chart without a word for x has points in a row.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.8), dpi=120, layout="constrained")
    axes = figure.subplots()
    up = 100 if chart.is_share else 1
    for number, (name, (x, y)) in enumerate(points.items()):
        across, colour = (100 if x.is_share else 1), _COLOURS[number % len(_COLOURS)]
        place = (across * x.value, up * y.value)
        if not math.isnan(x.low):
            axes.plot([across * x.low, across * x.high], [place[1]] * 2, color=colour)
        if not math.isnan(y.low):
            axes.plot([place[0]] * 2, [up * y.low, up * y.high], color=colour)
        axes.plot(*place, "o", color=colour)
        axes.annotate(name, place, xytext=(6, 6), textcoords="offset points")
    axes.margins(x=0.15, y=0.15)
    if not chart.x:  # places in a row, which mean nothing
        axes.set_xticks([])
    _finish(figure, axes, chart._replace(is_share=False))
    _save(figure, path)


def _finish(figure: object, axes: object, chart: Chart, *, is_across: bool = False) -> None:
    from matplotlib.axes import Axes

    assert isinstance(axes, Axes)
    axes.set_title(chart.title, loc="left", fontsize=12)
    axes.set_xlabel(chart.x)
    axes.set_ylabel(chart.y)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x" if is_across else "y", color="#e3e6ec")
    axes.set_axisbelow(True)
    if chart.is_share:
        (axes.set_xlim if is_across else axes.set_ylim)(0, 100)


def _save(figure: object, path: Path) -> None:
    from io import BytesIO

    from matplotlib.figure import Figure

    assert isinstance(figure, Figure)
    out = BytesIO()
    # Without the date of creation the same numbers give the same file.
    figure.savefig(out, format="png", metadata={"Software": None})
    write_atomically(path, out.getvalue())
