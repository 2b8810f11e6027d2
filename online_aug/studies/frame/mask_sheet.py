"""The contact sheet of a study of masks: each image as it is seen, cut out and mixed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from cache.contact_sheet import FAINT, INK
from online_aug.methods import Picture
from online_aug.studies.frame.sheet import BAD, Cell, draw_sheet

MOST_ROWS = 48
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
    places = np.unique(np.linspace(0, len(rows) - 1, min(MOST_ROWS, len(rows))).round().astype(int))
    draw_sheet([_cells(rows[place], reference) for place in places], path, title=title)


def _cells(row: SheetRow, reference: str) -> dict[str, Cell]:
    masks = {
        kind: Cell(_faded(row.image, mask), row.notes[kind], FAINT)
        for kind, mask in row.masks.items()
    }
    mix = np.where(row.union[..., None], row.image, row.background)
    return {
        "source": Cell(row.image, row.name, INK if row.is_good else BAD),
        "map": Cell(_heat(row.values)),
        **masks,
        reference: Cell(_faded(row.image, row.reference)),
        "target": Cell(row.background),
        "union": Cell(_faded(row.image, row.union)),
        "mix": Cell(mix, f"refused: {row.refused}" if row.refused else "", BAD),
    }


def _heat(values: Float[np.ndarray, "s s"]) -> Picture:
    levels = (values * 255).round().astype(np.uint8)
    return np.ascontiguousarray(cv2.applyColorMap(levels, cv2.COLORMAP_VIRIDIS)[..., ::-1])


def _faded(image: Picture, mask: Bool[np.ndarray, "s s"]) -> Picture:
    faint = (image * _FADED + 255 * (1 - _FADED)).astype(np.uint8)
    return np.where(mask[..., None], image, faint)
