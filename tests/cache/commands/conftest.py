from collections.abc import Callable
from pathlib import Path

import pytest
from exchange_samples import bird

from cache import Store
from cache.__main__ import main


@pytest.fixture
def birds(tmp_path: Path) -> Path:
    """A cache of 24 translated images, lossless, JPEG and raw, of classes 0 to 3."""
    path = tmp_path / "birds"
    for number, codec in enumerate(("png", "jpeg", "raw")):
        with Store(path, codec=codec) as store:
            store.put_many([bird(variant) for variant in range(8 * number, 8 * number + 8)])
    return path


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command line; returns exit status, standard output and standard error."""

    def run_command(*arguments: object) -> tuple[int, str, str]:
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as stopped:
            status = int(stopped.code or 0)
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run_command
