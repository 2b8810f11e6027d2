"""Results of the single classes of a test split: which stand out, and what is taken for what.

Of a thousand classes nobody reads a row each: the worst, the best and a line on the others are
shown, and the whole table is a file.
"""

import csv
import heapq
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from cache.contact_sheet import INK, LINE, PAPER, font, shortened
from online_aug.classifier.evaluation import Evaluation
from online_aug.console import percent
from online_aug.files import to_json, write_atomically
from online_aug.methods import Picture
from online_aug.reporting.run_directory import EVALUATION_FILE

SIDE_PX = 520
"""Side of the matrix, as nearly as whole cells allow."""
MOST_NAMED = 24
"""Classes up to which rows and columns are named and cells numbered."""
RIGHT, WRONG = (46, 125, 79), (179, 54, 43)
MOST_DRAWN = 250
"""Classes up to which the matrix is drawn at all; of more its largest wrong cells are listed."""
SHOWN, EXTREMES = 40, 20
"""Classes up to which each has its row; of more, how many of the worst and of the best have one."""
CLASSES_FILE = "classes.csv"
Confusion = Mapping[str, Mapping[str, int]]
"""How many images of each class were taken for each class; zeros are left out."""
_NAME_PX, _TEXT_PX = 90, 12
_LISTED, _LINE_PX = 20, 20


class Mistake(NamedTuple):
    """A class that was taken for another one."""

    true: str
    taken: str
    images: int
    share: float
    """Share of the images of the true class."""


def mistakes(confusion: Confusion, most: int) -> list[Mistake]:
    """Return the commonest mistakes, at most so many."""
    found = (
        Mistake(true, taken, count, count / sum(row.values()))
        for true, row in confusion.items()
        for taken, count in row.items()
        if taken != true
    )
    return heapq.nsmallest(most, found, lambda each: (-each.images, -each.share))


def ordered(shares: Mapping[str, float]) -> list[tuple[str, float]]:
    """Return classes with the share that is recognised, worst first."""
    return sorted(shares.items(), key=lambda entry: entry[1])


def spread_of(shares: Mapping[str, float]) -> str:
    """Say in a line how the classes differ.

    Example:
        >>> spread_of({"crow": 1.0, "jay": 0.5, "kite": 0.0})
        '3 classes: median 50.0 %, 1 at 90 % or more, 1 below 50 %, 1 never recognised'
    """
    values = np.array([*shares.values()])
    return (
        f"{len(values):,} classes: median {percent(float(np.median(values)))}, "
        f"{(values >= 0.9).sum():,} at 90 % or more, "
        f"{(values < 0.5).sum():,} below 50 %, {(values == 0).sum():,} never recognised"
    )


def write_results(directory: Path, found: Evaluation) -> None:
    """Write the evaluation of a finished run into its directory, and the table of its classes."""
    write_atomically(directory / EVALUATION_FILE, to_json(found, indent=2) + "\n")
    write_atomically(directory / CLASSES_FILE, class_table(found))


def class_table(found: Evaluation) -> str:
    """Return a row for each class as CSV: what is recognised, and what it is most taken for."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("class", "recognised", "images", "most_taken_for", "images_taken_for_it"))
    writer.writerows(_class_rows(found))
    return text.getvalue()


def _class_rows(found: Evaluation) -> Iterator[tuple[str, float, int, str, int]]:
    for name, share in ordered(found.per_class):
        row = found.confusion.get(name, {})
        wrong = {taken: count for taken, count in row.items() if taken != name}
        most = max(wrong, key=lambda taken: wrong[taken], default="")
        yield name, round(share, 6), sum(row.values()), most, wrong.get(most, 0)


def draw_confusion(names: Sequence[str], confusion: Confusion) -> Picture:
    """Draw a row for each true class and a column for each answer.

    The stronger the colour of a cell, the larger its share of the images of the true class. Of more
    than `MOST_DRAWN` classes the commonest mistakes are listed instead.
    """
    if len(names) > MOST_DRAWN:
        return _list_mistakes(confusion)
    cell, is_named = max(1, SIDE_PX // len(names)), len(names) <= MOST_NAMED
    margin = _NAME_PX if is_named else 1
    side = margin + cell * len(names) + 1
    sheet = Image.new("RGB", (side, side), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.rectangle((margin - 1, margin - 1, side - 1, side - 1), outline=LINE)
    places = {name: number for number, name in enumerate(names)}
    for true, row in confusion.items():
        for taken, count in row.items():
            x, y = margin + places[taken] * cell, margin + places[true] * cell
            colour = _mixed(RIGHT if true == taken else WRONG, count / sum(row.values()))
            draw.rectangle((x, y, x + cell - 1, y + cell - 1), colour)
            if is_named:
                middle = (x + cell // 2, y + cell // 2)
                draw.text(middle, str(count), INK, font(_TEXT_PX), anchor="mm")
    if is_named:
        _write_names(sheet, names, cell)
    return np.asarray(sheet)


def _list_mistakes(confusion: Confusion) -> Picture:
    found = mistakes(confusion, _LISTED)
    sheet = Image.new("RGB", (SIDE_PX, _LINE_PX * (len(found) + 2)), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((8, _LINE_PX), "class taken for another: images", INK, font(_TEXT_PX), anchor="lm")
    for number, each in enumerate(found, 2):
        y, length = number * _LINE_PX, round(each.share * (SIDE_PX - 16))
        box = (8, y - _LINE_PX // 2 + 1, 8 + length, y + _LINE_PX // 2 - 1)
        draw.rectangle(box, _mixed(WRONG, each.share))
        said = f"{each.true} taken for {each.taken}: {each.images} ({percent(each.share)})"
        line = shortened(said, _TEXT_PX, SIDE_PX - 24)
        draw.text((12, y), line, INK, font(_TEXT_PX), anchor="lm")
    return np.asarray(sheet)


def _mixed(colour: tuple[int, int, int], share: float) -> tuple[int, int, int]:
    weight = 0.1 + 0.8 * share
    red, green, blue = (round(255 + (part - 255) * weight) for part in colour)
    return red, green, blue


def _write_names(sheet: Image.Image, names: Sequence[str], cell: int) -> None:
    draw = ImageDraw.Draw(sheet)
    for number, name in enumerate(names):
        at = _NAME_PX + number * cell + cell // 2
        text = shortened(name, _TEXT_PX, _NAME_PX - 8)
        draw.text((_NAME_PX - 5, at), text, INK, font(_TEXT_PX), anchor="rm")
        upright = Image.new("RGB", (_NAME_PX - 5, _TEXT_PX + 4), PAPER)
        ImageDraw.Draw(upright).text((0, _TEXT_PX // 2 + 2), text, INK, font(_TEXT_PX), anchor="lm")
        turned = upright.rotate(90, expand=True)
        sheet.paste(turned, (at - turned.width // 2, 0))
