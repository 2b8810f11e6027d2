from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from cache_samples import large
from exchange_samples import bird

from cache import Entry, Store
from cache.__main__ import main

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def make_entries() -> Callable[..., list[Entry]]:
    """Make small noise images with distinct requests: `make_entries(count, start=0, side=4)`."""

    def make(count: int, start: int = 0, side: int = 4) -> list[Entry]:
        entries = []
        for variant in range(start, start + count):
            rng = np.random.default_rng(variant)
            image = rng.integers(0, 256, (side, side + 1, 3), dtype=np.uint8)
            request = {"method": "demo", "variant": variant, "strength": 0.5, "prompt": "a bird"}
            entries.append(Entry(request, image, {"confidence": 0.25}))
        return entries

    return make


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "cache") as opened:
        yield opened


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    """The directory of a closed cache with eight large records."""
    with Store(tmp_path / "cache", codec="raw") as store:
        store.put_many(large(8))
    return store.path


@pytest.fixture
def birds(tmp_path: Path) -> Path:
    """The directory of a cache of 24 translated images of classes 0 to 3: PNG, JPEG and raw."""
    path = tmp_path / "birds"
    for number, codec in enumerate(("png", "jpeg", "raw")):
        with Store(path, codec=codec, durability="process") as store:
            store.put_many([bird(variant) for variant in range(8 * number, 8 * number + 8)])
    return path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command line in this process; returns exit status, standard output and error."""

    def run_command(*arguments: object) -> tuple[int, str, str]:
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as stopped:
            status = int(stopped.code or 0)
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run_command
