"""Tables of what a classifier recognises: by class, group and class size, and the confusions."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from typing import NamedTuple

from online_aug.console import percent
from online_aug.reporting.class_results import (
    CLASSES_FILE,
    EXTREMES,
    MOST_DRAWN,
    SHOWN,
    Confusion,
    mistakes,
    ordered,
    spread_of,
)
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
FOLDED = 2000
"""Classes up to which the page has the whole table; of more it is in a file alone."""
MOST_NAMED = 24
"""Classes up to which the confusion matrix names rows and columns."""
LONGEST_NAME = 16
"""Characters of a class name beside the matrix."""


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
        table((title, "", "recognised"), _bars(ordered(shares)), numbers=(2,))
        for title, shares in summary.parts.items()
    ]
    about = paragraph("After the last epoch, worst first.")
    yield section("What is recognised of the test split", about, side_by_side(classes, *parts))
    matrix = confusion_chart([*summary.per_class], confusion)
    yield section("Confusions", side_by_side(matrix, _pairs(confusion)))


def _bars(accuracies: Iterable[tuple[str, float]]) -> list[list[str]]:
    return [[name, bar(share), percent(share)] for name, share in accuracies]


def _accuracies(per_class: Mapping[str, float], confusion: Confusion) -> str:
    classes = ordered(per_class)
    if len(classes) <= SHOWN:
        return _table_of(classes, confusion)
    extremes = _table_of([*classes[:EXTREMES], *classes[-EXTREMES:]], confusion)
    if len(classes) <= FOLDED:
        whole = folded(f"All {len(classes):,} classes", _table_of(classes, confusion))
    else:
        whole = paragraph(f"All of them are in {CLASSES_FILE} in the run directory.")
    said = f"{spread_of(per_class)}. The {EXTREMES} worst and the {EXTREMES} best:"
    return paragraph(said) + extremes + whole


def _table_of(classes: Iterable[tuple[str, float]], confusion: Confusion) -> str:
    rows = [
        [*cells, f"{sum(confusion[cells[0]].values()):,}" if cells[0] in confusion else "-"]
        for cells in _bars(classes)
    ]
    return table(("class", "", "recognised", "test images"), rows, numbers=(2, 3))


def _pairs(confusion: Confusion) -> str:
    rows = [
        (each.true, each.taken, f"{each.images:,}", percent(each.share))
        for each in mistakes(confusion, CONFUSIONS)
    ]
    return table(("class", "taken for", "images", "of the class"), rows, numbers=(2, 3))
