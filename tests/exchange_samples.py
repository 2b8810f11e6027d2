"""Caches and folders that the tests of exporting, importing and merging share."""

from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from cache import Entry, Store


def bird(variant: int) -> Entry:
    """A translated image whose request has every type of field."""
    rng = np.random.default_rng(variant)
    request = {
        "method": "diff_mix",
        "source_label": variant % 4,
        "target_label": variant // 2 % 4,
        "strength": (0.3, 0.5, 0.7)[variant % 3],
        "prompt": 'a "photo", of\na <bird>; \N{SNOWMAN}',
        "variant": variant,
        "is_test": True,
        "saliency_version": None,
        "noise_seed": 2**70 + variant,
        "guidance_scale": 0.1 + 0.2,
    }
    image = rng.integers(0, 256, (9, 7, 3), dtype=np.uint8)
    return Entry(request, image, {"confidence": 1 / 3})


def contents(path: Path) -> dict[bytes, tuple[Any, ...]]:
    """Everything of every record but its place and codec, by key."""
    found = {}
    with Store(path, readonly=True) as store:
        for _, key in store.tail():
            record = store.get(key)
            assert record is not None
            pixels = (record.image.shape, record.image.tobytes())
            found[key] = (record.request, record.scores, record.created, pixels)
    return found


def write_image(path: Path, seed: int = 0, mode: str = "RGB", **options: Any) -> np.ndarray:
    """A noise image in a file; returns its pixels as they were drawn."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.random.default_rng(seed).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    PIL.Image.fromarray(image).convert(mode).save(path, **options)
    return image


def assert_refused(result: tuple[int, str, str], message: str) -> None:
    """The command said why in one line and did nothing else."""
    status, out, err = result
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1
