"""Segmentation sets as sets to classify: the class of an image is that of its largest object.

As DA-Fusion (arXiv:2302.07944) makes a classification task of Pascal VOC.
"""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from online_aug.console import progress
from online_aug.data.image_sets import ImageSet
from online_aug.data.images import read_levels
from online_aug.data.published.readers import listed, table
from online_aug.saliency.mask_files import largest_object

VOC = "VOCdevkit/VOC2012"
VOC_NAMES = (
    *("airplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("dining table", "dog", "horse", "motorcycle", "person", "potted plant", "sheep", "sofa"),
    *("train", "television"),
)
"""Names of the twenty classes in prompts, in the order of their numbers, from 1."""
_QUICK = 200
"""Images whose masks are read before a progress bar would be."""


def voc_splits(root: Path) -> Mapping[str, ImageSet]:
    """Read Pascal VOC 2012 by its lists for segmentation; `val` is the test split."""
    folder = root / VOC
    lists = {
        split: [name for (name,) in table(folder / f"ImageSets/Segmentation/{theirs}.txt", 1)]
        for split, theirs in {"train": "train", "test": "val"}.items()
    }
    return {
        split: listed(
            folder,
            zip((f"JPEGImages/{name}.jpg" for name in names), _labels(folder, names), strict=True),
            VOC_NAMES,
        )
        for split, names in lists.items()
    }


def _labels(folder: Path, names: Sequence[str]) -> list[int]:
    title = f"reading the classes of {len(names):,} images from their masks"
    with (
        progress(title, len(names), enabled=len(names) > _QUICK) as bar,
        ThreadPoolExecutor(os.cpu_count()) as pool,
    ):
        found = []
        for label in pool.map(lambda name: _label(folder, name), names):
            found.append(label)
            bar.advance()
        return found


def _label(folder: Path, name: str) -> int:
    classes, objects = (
        read_levels(folder / part / f"{name}.png", numbers_palette=True)
        for part in ("SegmentationClass", "SegmentationObject")
    )
    if classes.shape != objects.shape:
        raise ValueError(f"both masks of {name} must be of one size, they are not")
    try:
        place = np.argmax(largest_object(objects))
    except ValueError as error:
        raise ValueError(f"the mask of {name} is {error}") from None
    return int(classes.flat[place]) - 1
