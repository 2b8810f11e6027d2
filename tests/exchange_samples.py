"""Records, image files and checks for tests of the cache's commands and exchange formats."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from cache import Entry, Store


def bird(variant: int) -> Entry:
    """Return a translated image whose request has every type of field."""
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
    return Entry(request, image, {"confidence": 1 / 3}, {"data_set": "birds-0a"})


def contents(path: Path) -> dict[bytes, tuple[Any, ...]]:
    """Return request, scores, time, pixels and class names of every record by key."""
    found = {}
    with Store(path, readonly=True) as store:
        for _, key in store.tail():
            record = store.get(key)
            assert record is not None
            pixels = (record.image.shape, record.image.tobytes())
            found[key] = (record.request, record.scores, record.created, pixels, record.classes)
    return found


def write_image(path: Path, seed: int = 0, mode: str = "RGB", **options: Any) -> np.ndarray:
    """Write a noise image to a file and return its pixels before they were encoded."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.random.default_rng(seed).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    PIL.Image.fromarray(image).convert(mode).save(path, **options)
    return image


def file_sizes(folder: Path) -> dict[Path, int]:
    """Return the size of every file and folder, but for LMDB's lock file.

    That one grows when it is opened, and holds no data.
    """
    return {path: path.stat().st_size for path in folder.rglob("*") if path.name != "lock.mdb"}


def assert_refused(result: tuple[int, str, str], message: str) -> None:
    """Check that a command ended with status 2, gave the reason in one line and printed no more."""
    status, out, err = result
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1


@contextmanager
def file_size_limit(size_bytes: int) -> Iterator[None]:
    """Let the kernel refuse to grow a file beyond a size, as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
