"""Images for benchmarks that need no download: photos and drawn birds."""

import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import PIL.Image

from cache.codecs import Pixels

ENLARGED = "the shorter sides of the photos are 400 to 512 px; what is larger was enlarged"
_CROPS = 3


def photo_squares(side: int) -> list[Pixels]:
    """Return fifteen squares, three of each photo, scaled to `side` px with Lanczos."""
    squares = []
    for photo in _photos():
        short, long = min(photo.size), max(photo.size)
        for number in range(_CROPS):
            start = (long - short) * number // (_CROPS - 1)
            box = (start, 0, start + short, short)
            if photo.height > photo.width:
                box = (0, start, short, start + short)
            squares.append(np.asarray(photo.crop(box).resize((side, side), _LANCZOS)))
    return squares


def bird_squares(count: int) -> list[Pixels]:
    """Return some of the embedded `pocket_birds`, drawn at 64 px."""
    from online_aug.data.embedded import write_embedded

    with tempfile.TemporaryDirectory() as folder:
        paths = sorted(write_embedded("pocket_birds", Path(folder)).rglob("*.png"))
        chosen = paths[:: max(1, len(paths) // count)][:count]
        return [np.asarray(PIL.Image.open(path).convert("RGB")) for path in chosen]


@cache
def _photos() -> tuple[PIL.Image.Image, ...]:
    try:
        import skimage.data
    except ImportError as error:
        raise SystemExit(
            "error: scikit-image must be installed for its photos; pip install -e '.[bench]'"
        ) from error
    from sklearn.datasets import load_sample_images

    arrays = [skimage.data.astronaut(), skimage.data.coffee(), skimage.data.rocket()]
    arrays += load_sample_images().images
    return tuple(PIL.Image.fromarray(array) for array in arrays)


_LANCZOS = PIL.Image.Resampling.LANCZOS
