"""Settings and fixtures of all tests: one thread, reproducible Hypothesis, Ctrl-C obeyed."""

import os
import signal
from functools import cache

# Before torch is imported, and inherited by the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Threads that load weights in a forked process find no thread pool of torch's.
os.environ.setdefault("HF_DEACTIVATE_ASYNC_LOAD", "1")

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
# A shell makes what it starts in the background ignore Ctrl-C, nohup makes it ignore a closed
# terminal, and all its children with it.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
settings.register_profile("suite", derandomize=True, deadline=None, max_examples=50)
settings.load_profile("suite")


LONGEST_FIRST = (
    "test_interrupts",
    "test_ranks",
    "end_to_end",
    "distributed",
    "finetuning",
    "training",
)
"""Parts of the paths of files that take longest: last, they would leave one worker waiting."""
WHOLE_NIGHT = "test_kills"
"""Takes the rest of a night: first, it would keep all others from running in a few minutes."""


def place(path):
    """Where a file stands in the order of the tests."""
    if WHOLE_NIGHT in path:
        return 100
    return next((n for n, part in enumerate(LONGEST_FIRST) if part in path), 99)


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: place(str(item.path)))


@pytest.fixture(autouse=True)
def _one_thread():
    """Leave PyTorch one thread: a command in this process may change it, and forks would hang."""
    yield
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """A Stable Diffusion directory of the embedded model's architecture with random weights."""
    from tiny_model import write_tiny_model  # diffusers: slow to import

    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory):
    """A CLIP directory with random weights."""
    from tiny_model import write_tiny_clip

    return write_tiny_clip(tmp_path_factory.mktemp("models") / "clip")


@pytest.fixture(scope="session")
def tiny_editor(tmp_path_factory):
    """An InstructPix2Pix directory of the embedded editor's architecture with random weights."""
    from tiny_model import write_tiny_model

    return write_tiny_model(tmp_path_factory.mktemp("models") / "editor", condition_channels=4)


@pytest.fixture(scope="session")
def tiny_vae(tmp_path_factory):
    """An `AutoencoderTiny` directory with random weights that fits the tiny model."""
    from tiny_model import write_tiny_vae

    return write_tiny_vae(tmp_path_factory.mktemp("models") / "taesd")


@pytest.fixture(scope="session")
def miniature_of(tmp_path_factory):
    """Return a random model like Stable Diffusion 1.x (noise) or 2.x (velocity), by version."""
    from tiny_model import write_miniature

    @cache
    def write(version):
        return write_miniature(tmp_path_factory.mktemp("models") / f"sd{version}", version)

    return write


@pytest.fixture(scope="session")
def embedded_root(tmp_path_factory):
    """A `data.root` in which the embedded data sets are written once for all xdist workers."""
    base = tmp_path_factory.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "embedded"
    root.mkdir(exist_ok=True)
    return root


@pytest.fixture
def store(tmp_path):
    """An open cache that no other test uses."""
    from cache import Store

    with Store(tmp_path / "cache").open() as opened:
        yield opened


@pytest.fixture(scope="session")
def world():
    """A world of one rank, one for all tests of a process because DeepSpeed starts only once."""
    from online_aug.distributed.world import start_distributed

    return start_distributed("cpu")


@pytest.fixture
def server(monkeypatch):
    """An image server that is good unless told otherwise; waits between two tries are short."""
    from edit_server import edit_server

    from online_aug.image_server import connection

    monkeypatch.setattr(connection, "back_off_s", lambda tried, chance: 0.01)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with edit_server() as serving:
        yield serving
