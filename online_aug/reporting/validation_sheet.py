"""A sheet of what a generator that learns draws for a few classes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from cache.contact_sheet import Cell, draw_sheet
from online_aug.reporting.atomic import write_atomically


def write_validation_sheet(
    path: Path, images: Sequence[UInt8[np.ndarray, "h w 3"]], words: Sequence[Sequence[str]]
) -> None:
    """Write a PNG of images with lines of words beside each; its folder is made where missing.

    Raises:
        OSError: If it cannot be written.
    """
    cells = [Cell(image, None, said) for image, said in zip(images, words, strict=True)]
    path.parent.mkdir(exist_ok=True)
    title = path.stem.replace("_", " ")
    write_atomically(path, draw_sheet(cells, title, has_sources=False))
