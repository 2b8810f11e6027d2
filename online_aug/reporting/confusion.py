"""A confusion matrix as a picture, for TensorBoard."""

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw

from cache.contact_sheet import INK, LINE, PAPER, font, shortened
from online_aug.methods import Picture

SIDE_PX = 520
"""Side of the matrix, as nearly as whole cells allow."""
MOST_NAMED = 24
"""Classes up to which rows and columns are named and cells numbered."""
RIGHT, WRONG = (46, 125, 79), (179, 54, 43)
_NAME_PX, _TEXT_PX = 90, 12


def draw_confusion(names: Sequence[str], confusion: Mapping[str, Mapping[str, int]]) -> Picture:
    """Draw a row for each true class and a column for each answer.

    The stronger the colour of a cell, the larger its share of the images of the true class.
    """
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
