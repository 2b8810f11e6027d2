"""The contact sheet of a study of masks: each image as it is seen, cut out and mixed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageDraw

from cache.contact_sheet import FAINT, INK, LINE, PAPER, font, png_file, scaled, shortened
from online_aug.files import write_atomically
from online_aug.methods import Picture

MOST_ROWS = 48
_SMALLEST_PX, _LARGEST_PX = 112, 160
_MARGIN, _GAP, _CAPTION, _TITLE_HEIGHT, _HEAD_HEIGHT = 28, 14, 40, 50, 30
_TITLE_PX, _HEAD_PX, _TEXT_PX = 22, 15, 13
_BAD = "#c0392b"
_FADED = 0.2
"""How much of an image is left where a mask leaves it out."""


@dataclass(frozen=True, kw_only=True)
class SheetRow:
    """One source image."""

    image: UInt8[np.ndarray, "s s 3"]
    values: Float[np.ndarray, "s s"]
    """Its map."""
    masks: Mapping[str, Bool[np.ndarray, "s s"]]
    """Its foreground by kind of mask."""
    notes: Mapping[str, str]
    """What to say of each of these."""
    reference: Bool[np.ndarray, "s s"]
    """True mask, or another way's."""
    background: UInt8[np.ndarray, "s s 3"]
    """The image chosen as background."""
    union: Bool[np.ndarray, "s s"]
    """Where the mix shows the source."""
    name: str
    """Its class."""
    is_good: bool
    refused: str | None
    """Why the method would not mix it."""


def draw_mask_sheet(rows: Sequence[SheetRow], path: Path, *, title: str, reference: str) -> None:
    """Draw up to `MOST_ROWS` rows into a PNG file, evenly chosen from their order.

    Args:
        rows: The images.
        path: The file.
        title: Its heading.
        reference: Heading of the masks that others are compared with.

    Raises:
        ValueError: If there are no rows.
    """
    if not rows:
        raise ValueError("rows must hold at least one image, got none")
    places = np.unique(np.linspace(0, len(rows) - 1, min(MOST_ROWS, len(rows))).round().astype(int))
    pictures = [_pictures(rows[place], reference) for place in places]
    cell = max(side for row in pictures for picture in row.values() for side in picture.size)
    width = 2 * _MARGIN + len(pictures[0]) * (cell + _GAP) - _GAP
    top, pitch = _TITLE_HEIGHT + _HEAD_HEIGHT, cell + _CAPTION
    sheet = Image.new("RGB", (width, top + len(pictures) * pitch + _MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN, 18), shortened(title, _TITLE_PX, width - 2 * _MARGIN), INK, font(_TITLE_PX))
    for column, head in enumerate(pictures[0]):
        x = _MARGIN + column * (cell + _GAP)
        draw.text((x, _TITLE_HEIGHT + 4), shortened(head, _HEAD_PX, cell), FAINT, font(_HEAD_PX))
    for number, (place, row) in enumerate(zip(places, pictures, strict=True)):
        captions = _captions(rows[place])
        for column, (head, picture) in enumerate(row.items()):
            corner = (_MARGIN + column * (cell + _GAP), top + number * pitch)
            sheet.paste(picture, corner)
            _frame_and_caption(draw, corner, picture.size, captions.get(head, ("", INK)))
    write_atomically(path, png_file(sheet))


def _frame_and_caption(
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    size: tuple[int, int],
    caption: tuple[str, str],
) -> None:
    (x, y), (width, height), (text, colour) = corner, size, caption
    draw.rectangle((x - 1, y - 1, x + width, y + height), outline=LINE)
    draw.text((x, y + height + 4), shortened(text, _TEXT_PX, width), colour, font(_TEXT_PX))


def _pictures(row: SheetRow, reference: str) -> dict[str, Image.Image]:
    shown: dict[str, Picture] = {"source": row.image, "map": _heat(row.values)}
    shown |= {kind: _faded(row.image, mask) for kind, mask in row.masks.items()}
    shown[reference] = _faded(row.image, row.reference)
    shown["target"] = row.background
    shown["union"] = _faded(row.image, row.union)
    shown["mix"] = np.where(row.union[..., None], row.image, row.background)
    return {name: scaled(picture, _SMALLEST_PX, _LARGEST_PX) for name, picture in shown.items()}


def _captions(row: SheetRow) -> dict[str, tuple[str, str]]:
    said = {kind: (note, FAINT) for kind, note in row.notes.items()}
    said["source"] = (row.name, INK if row.is_good else _BAD)
    if row.refused:
        said["mix"] = (f"refused: {row.refused}", _BAD)
    return said


def _heat(values: Float[np.ndarray, "s s"]) -> Picture:
    levels = (values * 255).round().astype(np.uint8)
    return np.ascontiguousarray(cv2.applyColorMap(levels, cv2.COLORMAP_VIRIDIS)[..., ::-1])


def _faded(image: Picture, mask: Bool[np.ndarray, "s s"]) -> Picture:
    faint = (image * _FADED + 255 * (1 - _FADED)).astype(np.uint8)
    return np.where(mask[..., None], image, faint)
