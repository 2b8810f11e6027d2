"""A sheet of images: a row for each source, a column for each kind, with captions."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw

from cache.contact_sheet import FAINT, INK, LINE, PAPER, font, png_file, scaled, shortened
from online_aug.files import write_atomically
from online_aug.methods import Picture

BAD, GOOD = "#c0392b", "#2e7d32"
"""Colours of a caption that tells of a fault, or of a goal that is reached."""
_SMALLEST_PX, _LARGEST_PX = 112, 160
_MARGIN, _GAP, _CAPTION, _TITLE_HEIGHT, _HEAD_HEIGHT = 28, 14, 40, 50, 30
_TITLE_PX, _HEAD_PX, _TEXT_PX = 22, 15, 13


class Cell(NamedTuple):
    """A picture with what is said of it."""

    picture: Picture
    caption: str = ""
    colour: str = INK


def draw_sheet(rows: Sequence[Mapping[str, Cell]], path: Path, *, title: str) -> None:
    """Draw rows of pictures into a PNG file; the heads of the columns are those of the first row.

    Small pictures are enlarged without smoothing, so that every pixel stays visible.

    Raises:
        ValueError: If there are no rows.
    """
    if not rows:
        raise ValueError("rows must hold at least one image, got none")
    pictures = [
        {head: scaled(cell.picture, _SMALLEST_PX, _LARGEST_PX) for head, cell in row.items()}
        for row in rows
    ]
    side = max(side for row in pictures for picture in row.values() for side in picture.size)
    width = 2 * _MARGIN + len(rows[0]) * (side + _GAP) - _GAP
    top, pitch = _TITLE_HEIGHT + _HEAD_HEIGHT, side + _CAPTION
    sheet = Image.new("RGB", (width, top + len(rows) * pitch + _MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN, 18), shortened(title, _TITLE_PX, width - 2 * _MARGIN), INK, font(_TITLE_PX))
    for column, head in enumerate(rows[0]):
        x = _MARGIN + column * (side + _GAP)
        draw.text((x, _TITLE_HEIGHT + 4), shortened(head, _HEAD_PX, side), FAINT, font(_HEAD_PX))
        for number, row in enumerate(pictures):
            if head in row:
                y = top + number * pitch
                sheet.paste(row[head], (x, y))
                _frame_and_caption(draw, (x, y), row[head].size, rows[number][head])
    write_atomically(path, png_file(sheet))


def _frame_and_caption(
    draw: ImageDraw.ImageDraw, corner: tuple[int, int], size: tuple[int, int], cell: Cell
) -> None:
    (x, y), (width, height) = corner, size
    draw.rectangle((x - 1, y - 1, x + width, y + height), outline=LINE)
    caption = shortened(cell.caption, _TEXT_PX, width)
    draw.text((x, y + height + 4), caption, cell.colour, font(_TEXT_PX))
