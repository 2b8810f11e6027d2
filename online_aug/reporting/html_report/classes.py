"""Tables of what a classifier recognises: by class, group and class size, and the confusions."""

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import NamedTuple

from online_aug.console import percent
from online_aug.reporting.html_report.page import (
    bar,
    folded,
    paragraph,
    section,
    side_by_side,
    table,
)
from online_aug.reporting.html_report.recorded_run import RecordedRun

CONFUSIONS = 15
"""Pairs of classes that the table of confusions lists."""
CLASSES = 40
"""Classes up to which their table is shown unfolded."""
WORST = 15
"""Classes that are shown of more."""
MOST_NAMED = 24
"""Classes up to which the confusion matrix names rows and columns."""
LONGEST_NAME = 16
"""Characters of a class name beside the matrix."""
MOST_DRAWN = 250
"""Classes up to which it is drawn at all."""
Confusion = Mapping[str, Mapping[str, int]]
"""How many images of each class were taken for each class; zeros are left out."""


def confusion_chart(names: Sequence[str], counts: Confusion) -> str:
    """Draw a confusion matrix, true classes downwards; nothing for more than `MOST_DRAWN` classes.

    The shade of a cell is its share of the images of the true class.
    """
    if not counts or len(names) > MOST_DRAWN:
        return ""
    places = {name: n for n, name in enumerate(dict.fromkeys((*names, *_taken_for(counts))))}
    is_named = len(places) <= MOST_NAMED
    longest = min(LONGEST_NAME, max(map(len, places)))
    margin, cell = (10.0 + 6 * longest, 22.0) if is_named else (1.0, max(2.0, 520 / len(places)))
    cells = [
        _cell(_Place(margin, cell, places[true], places[taken], is_named), count, _images(row))
        for true, row in counts.items()
        for taken, count in row.items()
    ]
    if is_named:
        cells += [_names_of(name, n, margin, cell) for name, n in places.items()]
    inner = cell * len(places)
    right = sum(row.get(true, 0) for true, row in counts.items())
    total = sum(sum(row.values()) for row in counts.values())
    words = f"confusion matrix: {right} of {total} images are on the diagonal"
    return (
        '<figure class="matrix"><figcaption>What was taken for what<small>A row for each true '
        "class, a column for each answer; the stronger, the larger the share of the row.</small>"
        f'</figcaption><svg viewBox="0 0 {margin + inner + 1:.0f} {margin + inner + 1:.0f}" '
        f'style="max-width:{margin + inner + 1:.0f}px" role="img" aria-label="{words}">'
        f'<rect class="box" x="{margin}" y="{margin}" width="{inner:.1f}" height="{inner:.1f}"/>'
        f"{''.join(cells)}</svg></figure>"
    )


def _taken_for(counts: Confusion) -> list[str]:
    return [taken for row in counts.values() for taken in row]


class _Place(NamedTuple):
    margin: float
    side: float
    row: int
    column: int
    is_named: bool


def _cell(place: _Place, count: int, of: int) -> str:
    side, share = place.side, count / of
    x, y = place.margin + place.column * side, place.margin + place.row * side
    kind = "right" if place.row == place.column else "wrong"
    drawn = (
        f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{side:.1f}" height="{side:.1f}" '
        f'fill-opacity="{0.12 + 0.88 * share:.2f}"/>'
    )
    if not place.is_named:
        return drawn
    ink = "over" if share > 0.45 else "ink"
    return (
        f'{drawn}<text class="{ink}" x="{x + side / 2:.1f}" y="{y + side / 2 + 3.5:.1f}" '
        f'text-anchor="middle">{count}</text>'
    )


def _images(row: Mapping[str, int]) -> int:
    return max(1, sum(row.values()))


def _cut(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"


def _names_of(name: str, number: int, margin: float, cell: float) -> str:
    at, shown = margin + (number + 0.5) * cell, escape(_cut(name))
    return (
        f'<text x="{margin - 5}" y="{at + 3.5:.1f}" text-anchor="end">{shown}</text>'
        f'<text transform="translate({at + 3.5:.1f} {margin - 5}) rotate(-90)">{shown}</text>'
    )


def class_sections(run: RecordedRun) -> Iterator[str]:
    """Return what a finished run recognises of the test split, after the last epoch."""
    summary = run.summary
    if summary is None:
        return
    confusion = run.evaluation.confusion if run.evaluation else {}
    classes = _accuracies(summary.per_class, confusion)
    parts = [
        table((title, "", "recognised"), _bars(shares), numbers=(2,))
        for title, shares in summary.parts.items()
    ]
    about = paragraph("After the last epoch, worst first.")
    yield section("What is recognised of the test split", about, side_by_side(classes, *parts))
    matrix = confusion_chart([*summary.per_class], confusion)
    yield section("Confusions", side_by_side(matrix, _pairs(confusion)))


def _bars(accuracies: Mapping[str, float]) -> list[list[str]]:
    ordered = sorted(accuracies.items(), key=lambda entry: entry[1])
    return [[name, bar(share), percent(share)] for name, share in ordered]


def _accuracies(per_class: Mapping[str, float], confusion: Confusion) -> str:
    sizes = {name: f"{sum(row.values()):,}" for name, row in confusion.items()}
    rows = [[*cells, sizes.get(cells[0], "-")] for cells in _bars(per_class)]
    heads = ("class", "", "recognised", "test images")
    drawn = table(heads, rows, numbers=(2, 3))
    if len(rows) <= CLASSES:
        return drawn
    return table(heads, rows[:WORST], numbers=(2, 3)) + folded(f"All {len(rows)} classes", drawn)


def _pairs(confusion: Confusion) -> str:
    wrong = [
        (count, true, taken, count / _images(row))
        for true, row in confusion.items()
        for taken, count in row.items()
        if true != taken
    ]
    commonest = sorted(wrong, key=lambda each: (-each[0], -each[3]))[:CONFUSIONS]
    rows = [(true, taken, f"{count:,}", percent(share)) for count, true, taken, share in commonest]
    return table(("class", "taken for", "images", "of the class"), rows, numbers=(2, 3))
