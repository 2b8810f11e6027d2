"""A folder of mask files: which file belongs to an image, and the map that its values make."""

from pathlib import PurePosixPath
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float

Layout = Literal["mirror", "stretched", "cub", "pets", "voc"]
FOLDERS = {"cub": "segmentations", "pets": "annotations/trimaps", "voc": "SegmentationObject"}
NUMBERED = ("pets", "voc")
"""Layouts whose values are numbers, whatever colours a palette gives them."""
"""Where the masks of a published set lie in its folder."""
SIDE_PX = 64
"""Side of the maps; values are averaged over the area of a cell."""
_OBJECT, _BACKGROUND, _BORDER = 1, 2, 3
_VOC_BACKGROUND, _VOC_BORDER = 0, 255
_SLACK_PX = 1
"""By how much a side may differ from the image's aspect ratio: sides are rounded."""


def mask_names(file: str, split: str, layout: Layout) -> tuple[str, ...]:
    """Return the names that the mask of an image may have below the folder, the likeliest first.

    Args:
        file: The image's file, relative to the folder of its split, with slashes.
        split: Name of that folder, such as `train`.
        layout: How the masks are laid out.
    """
    name = PurePosixPath(file).with_suffix(".png")
    if layout in NUMBERED:
        return (name.name,)
    if layout == "cub":
        return ("/".join(name.parts[-2:]),)
    return (str(PurePosixPath(split) / name), str(name)) if split else (str(name),)


def mask_map(
    levels: Float[np.ndarray, "h w"], size: tuple[int, int], layout: Layout
) -> Float[np.ndarray, "64 64"]:
    """Return the map that a mask makes, in [0, 1].

    A trimap's border counts as object; of the numbered objects of `voc` the largest is marked.

    Args:
        levels: Values of the mask file; those of a trimap are 1, 2 and 3, those of `voc` 0 for the
            background, numbers of objects, and 255 for borders.
        size: Height and width of the image, px.
        layout: How the masks are laid out.

    Raises:
        ValueError: If the mask is of another aspect ratio, blank, or not a trimap if one is asked
            for; says what it is.
    """
    height, width = levels.shape
    if layout != "stretched" and abs(width * size[0] - height * size[1]) > _SLACK_PX * max(size):
        raise ValueError("of another aspect ratio")
    if layout == "pets":
        if not np.isin(levels, (_OBJECT, _BACKGROUND, _BORDER)).all():
            raise ValueError("with other values than a trimap's 1, 2 and 3")
        levels = (levels != _BACKGROUND).astype(np.float32)
    if layout == "voc":
        levels = largest_object(levels).astype(np.float32)
    lowest, highest = levels.min(), levels.max()
    if lowest == highest:
        raise ValueError("blank")
    values = torch.from_numpy((levels - lowest) / (highest - lowest)).float()
    return F.interpolate(values[None, None], (SIDE_PX, SIDE_PX), mode="area")[0, 0].numpy()


def largest_object(numbers: Float[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Mark the largest object of a mask with numbered ones, the first of equals.

    Raises:
        ValueError: If there is none.
    """
    found, sizes = np.unique(numbers, return_counts=True)
    sizes[np.isin(found, (_VOC_BACKGROUND, _VOC_BORDER))] = 0
    if not sizes.any():
        raise ValueError("without an object")
    return np.asarray(numbers == found[np.argmax(sizes)])
