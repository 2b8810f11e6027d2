"""Worker processes that end, or cannot hand over what they have made."""

import multiprocessing
import os
import signal
import tempfile
import time

import pytest
from launches import GONE_S, is_alive, wait_for
from mixing_samples import Setup

from online_aug.errors import UserError
from online_aug.loader import workers
from online_aug.loader.workers import shared_memory_warning, worker_error

MIB = 2**20


@pytest.fixture
def small_memory(monkeypatch):
    """Shared memory as containers have it."""
    monkeypatch.setattr(workers, "shared_memory", lambda: (64 * MIB, 40 * MIB))


def test_a_killed_worker_is_one_line_and_its_loader_can_be_saved(store):
    with Setup(store).loader(workers=1) as loader:
        batches = iter(loader)
        next(batches)
        (worker,) = multiprocessing.active_children()
        os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(UserError, match=r"^data\.workers must be able .* killed by SIGKILL: "):
            list(batches)
        assert loader.state_dict()["step"] == loader.step


def test_a_worker_killed_between_two_epochs_is_one_line_too(store):
    with Setup(store).loader(workers=1) as loader:
        list(loader)
        (worker,) = multiprocessing.active_children()
        os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(UserError, match=r"^data\.workers must be able .* killed by SIGKILL: "):
            list(loader)


def test_a_worker_that_cannot_hand_over_its_batch_says_why(store, monkeypatch, tmp_path):
    long = tmp_path / ("x" * 112)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    monkeypatch.setitem(multiprocessing.current_process()._config, "tempdir", str(long))
    with (
        Setup(store).loader(workers=1) as loader,
        pytest.raises(UserError, match=r"\(AF_UNIX path too long\): TMPDIR must be a short path"),
    ):
        next(iter(loader))


def test_a_worker_ends_at_once_with_its_main_process(store):
    reading, writing = os.pipe()
    main = os.fork()
    if main == 0:
        batches = iter(Setup(store).loader(workers=1))
        next(batches)
        os.write(writing, str(multiprocessing.active_children()[0].pid).encode())
        time.sleep(600)
    worker = int(os.read(reading, 99))
    os.kill(main, signal.SIGKILL)
    os.waitpid(main, 0)
    wait_for(lambda: not is_alive(worker), GONE_S / 2)


@pytest.mark.parametrize(
    ("code", "reason", "said"),
    [
        (
            -signal.SIGBUS,
            "",
            r"killed by SIGBUS: batches need up to 15\.0 MiB of shared memory, and ",
        ),
        (1, "No space left on device", r"over a batch \(No space left on device\): batches need "),
        (-signal.SIGKILL, "", "the kernel does so when memory runs out"),
    ],
)
@pytest.mark.usefixtures("small_memory")
def test_an_end_for_want_of_memory_says_how_much_there_is(code, reason, said):
    error = worker_error([None, code], reason, batch_bytes=3 * MIB)
    assert "\n" not in str(error)
    with pytest.raises(UserError, match=said) as caught:
        raise error
    assert "/dev/shm has 40.0 MiB free of 64.0 MiB: start the container with" in str(caught.value)


@pytest.mark.usefixtures("small_memory")
@pytest.mark.parametrize(
    ("count", "ranks", "is_told"), [(0, 1, False), (4, 1, False), (5, 1, True), (4, 2, True)]
)
def test_shared_memory_that_is_too_small_for_the_batches_is_told(count, ranks, is_told):
    assert (shared_memory_warning(count, ranks, 4 * MIB) is not None) == is_told
