"""Charts as inline SVG, a few kilobytes each: lines, and layers that add up to a whole.

Colours are classes of the page's style, which has a set for light and one for dark.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 360, 220
LEFT, RIGHT, TOP, BOTTOM = 48, 10, 10, 34
MOST_POINTS = 400
"""Longer curves are drawn from evenly spaced points."""
MOST_DOTS = 40
"""Curves of at most so many points have a dot, with its value, at each of them."""
COLOURS = 8
"""Colours of the page's style; further lines are dashed."""


@dataclass(frozen=True)
class Line:
    """A curve; a value that is not finite leaves a gap."""

    name: str
    values: Sequence[float]
    lowest: Sequence[float] | None = None
    highest: Sequence[float] | None = None
    """Limits of a band around the curve, such as over seeds."""


@dataclass(frozen=True)
class Layer:
    """A part of a whole, with the class of its colour."""

    name: str
    values: Sequence[float]
    colour: str


@dataclass(frozen=True)
class Axes:
    """Ranges of both axes, and the words beside them."""

    x: Sequence[float]
    low: float
    high: float
    is_share: bool = False
    """Whether values are shares, written in percent."""
    x_title: str = "epoch"

    def across(self, x: float) -> float:
        """Return where a value on the x axis lies, px."""
        first, last = self.x[0], self.x[-1]
        share = (x - first) / (last - first) if last > first else 0.5
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def up(self, value: float) -> float:
        """Return where a value on the y axis lies, px from the top."""
        span = (self.high - self.low) or 1.0
        return HEIGHT - BOTTOM - (value - self.low) / span * (HEIGHT - TOP - BOTTOM)

    def text(self, value: float) -> str:
        """Write a value."""
        return f"{100 * value:.4g} %" if self.is_share else short(value)


def short(value: float) -> str:
    """Write a number in a few characters, such as 0.25, 12 or 3.4k."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if unit == 'k' else size):.4g}{unit}"
    return f"{value:.4g}"


def line_chart(
    title: str,
    x: Sequence[float],
    lines: Sequence[Line],
    *,
    is_share: bool = False,
    from_zero: bool = True,
    note: str = "",
) -> str:
    """Draw curves over epochs; nothing if no value is finite.

    Args:
        title: The caption.
        x: Epochs, counted from 1.
        lines: Curves with a value for each of `x`.
        is_share: Whether values are written in percent.
        from_zero: Whether the axis includes zero.
        note: A sentence below the caption.
    """
    kept = _thinned(len(x))
    x, lines = [x[n] for n in kept], [_thinned_line(line, kept) for line in lines]
    every = [
        value
        for line in lines
        for values in (line.values, line.lowest or (), line.highest or ())
        for value in values
        if math.isfinite(value)
    ]
    if not every:
        return ""
    low, high = (min(0.0, min(every)) if from_zero else min(every)), max(every)
    ticks = nice_ticks(low, high if high > low else low + 1)
    axes = Axes(x, ticks[0], ticks[-1], is_share)
    drawn = [_band(axes, line, n) for n, line in enumerate(lines) if line.lowest]
    drawn += [_curve(axes, line, n, has_dots=len(x) <= MOST_DOTS) for n, line in enumerate(lines)]
    said = "; ".join(_in_words(axes, line) for line in lines)
    legend = [(line.name, f"c{n % COLOURS}") for n, line in enumerate(lines)]
    return _figure(title, note, f"{title}: {said}", legend, _frame(axes, ticks) + "".join(drawn))


def layer_chart(
    title: str, x: Sequence[float], layers: Sequence[Layer], *, is_share: bool, note: str = ""
) -> str:
    """Draw layers that lie on one another, such as shares of a whole, over epochs."""
    kept = _thinned(len(x))
    x = [x[n] for n in kept]
    sums = [sum(layer.values[n] for layer in layers) for n in kept]
    ticks = nice_ticks(0.0, max(sums, default=0.0) or 1.0)
    axes = Axes(x, 0.0, ticks[-1], is_share)
    below, drawn = [0.0] * len(x), []
    for layer in layers:
        above = [low + layer.values[n] for low, n in zip(below, kept, strict=True)]
        drawn.append(_area(axes, below, above, layer.colour, layer.name))
        below = above
    said = "; ".join(
        _in_words(axes, Line(layer.name, [layer.values[n] for n in kept])) for layer in layers
    )
    legend = [(layer.name, layer.colour) for layer in layers]
    return _figure(title, note, f"{title}: {said}", legend, "".join(drawn) + _frame(axes, ticks))


def nice_ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Return evenly spaced round numbers, the first at most `low` and the last at least `high`."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * n for n in (1, 2, 2.5, 5, 10) if power * n >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [step * n for n in range(first, last + 1)]


def _thinned(count: int) -> list[int]:
    if count <= MOST_POINTS:
        return list(range(count))
    return [round(n * (count - 1) / (MOST_POINTS - 1)) for n in range(MOST_POINTS)]


def _thinned_line(line: Line, kept: Sequence[int]) -> Line:
    return Line(
        line.name,
        [line.values[n] for n in kept],
        None if line.lowest is None else [line.lowest[n] for n in kept],
        None if line.highest is None else [line.highest[n] for n in kept],
    )


def _frame(axes: Axes, ticks: Sequence[float]) -> str:
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    parts = []
    for tick in ticks:
        y = axes.up(tick)
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="{LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{axes.text(tick)}</text>'
        )
    for tick in _whole_ticks(axes.x):
        x = axes.across(tick)
        parts.append(
            f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 4}"/>'
            f'<text x="{x:.1f}" y="{bottom + 15}" text-anchor="middle">{tick:g}</text>'
        )
    return (
        f'{"".join(parts)}<line class="axis" x1="{LEFT}" x2="{right}" y1="{bottom}" '
        f'y2="{bottom}"/><text x="{right}" y="{HEIGHT - 4}" text-anchor="end">{axes.x_title}</text>'
    )


def _whole_ticks(x: Sequence[float]) -> list[float]:
    if x[-1] - x[0] < 1:
        return [x[0]]
    ticks = nice_ticks(x[0], x[-1], 6)
    return [tick for tick in ticks if tick == round(tick) and x[0] <= tick <= x[-1]]


def _curve(axes: Axes, line: Line, number: int, *, has_dots: bool) -> str:
    dashed = " dashed" if number >= COLOURS else ""
    style = f'class="line c{number % COLOURS}{dashed}"'
    points = [(axes.across(x), v) for x, v in zip(axes.x, line.values, strict=True)]
    pieces, piece = [], list[str]()
    for x, value in [*points, (0.0, math.nan)]:
        if math.isfinite(value):
            piece.append(f"{x:.1f},{axes.up(value):.1f}")
        elif piece:
            pieces.append(piece)
            piece = []
    drawn = [f'<polyline {style} points="{" ".join(piece)}"/>' for piece in pieces]
    if has_dots:
        drawn += [
            f'<circle class="dot c{number % COLOURS}" cx="{x:.1f}" cy="{axes.up(value):.1f}" '
            f'r="2.5"><title>{escape(line.name)}, {axes.x_title} {at:g}: {axes.text(value)}'
            "</title></circle>"
            for (x, value), at in zip(points, axes.x, strict=True)
            if math.isfinite(value)
        ]
    return "".join(drawn)


def _band(axes: Axes, line: Line, number: int) -> str:
    assert line.lowest is not None
    assert line.highest is not None
    return _area(axes, line.lowest, line.highest, f"c{number % COLOURS} band", line.name)


def _area(
    axes: Axes, below: Sequence[float], above: Sequence[float], colour: str, name: str
) -> str:
    x = list(axes.x)
    if len(x) == 1:  # a block, since a single epoch has no width
        edges = [(float(LEFT), 0), (float(WIDTH - RIGHT), 0)]
    else:
        edges = [(axes.across(at), n) for n, at in enumerate(x)]
    there = [f"{at:.1f},{axes.up(above[n]):.1f}" for at, n in edges if math.isfinite(above[n])]
    back = [f"{at:.1f},{axes.up(below[n]):.1f}" for at, n in edges if math.isfinite(below[n])]
    points = " ".join([*there, *reversed(back)])
    return (
        f'<polygon class="area {colour}" points="{points}"><title>{escape(name)}</title></polygon>'
    )


def _in_words(axes: Axes, line: Line) -> str:
    values = [value for value in line.values if math.isfinite(value)]
    if not values:
        return f"{line.name}: no values"
    first, last = axes.text(values[0]), axes.text(values[-1])
    limits = f"lowest {axes.text(min(values))}, highest {axes.text(max(values))}"
    return f"{line.name} from {first} to {last}, {limits}"


def _figure(
    title: str, note: str, words: str, legend: Sequence[tuple[str, str]], drawn: str
) -> str:
    keys = "".join(
        f'<span class="key"><i class="{colour}"></i>{escape(name)}</span>'
        for name, colour in legend
        if len(legend) > 1
    )
    said = f"<small>{escape(note)}</small>" if note else ""
    return (
        f'<figure class="chart"><figcaption>{escape(title)}{said}</figcaption>'
        f'<div class="keys">{keys}</div><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(words)}">{drawn}</svg></figure>'
    )
