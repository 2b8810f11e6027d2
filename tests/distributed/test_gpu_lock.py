"""The lock of a GPU on which a process generates, with a GPU that is only a name."""

import multiprocessing
import os
import signal
import tempfile

import pytest
from filelock import Timeout

from online_aug.distributed import devices
from online_aug.distributed.devices import check_unused, sole_generator
from online_aug.errors import UserError
from online_aug.files import alone

FORK = multiprocessing.get_context("fork")
GPUS = {"cuda:0": "GPU-a", "cuda:1": "GPU-b"}


@pytest.fixture(autouse=True)
def _gpus(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(devices, "gpu_id", GPUS.__getitem__)
    monkeypatch.setattr(devices, "PATIENCE_S", 0.05)


def test_a_gpu_on_which_another_generates_is_refused_in_one_line():
    message = (
        r"^devices\.generate must be a GPU on which no other process generates, got cuda:0 "
        r"\(GPU-a\); [^\n]*$"
    )
    with (
        sole_generator("cuda:0"),
        pytest.raises(UserError, match=message),
        sole_generator("cuda:0"),
    ):
        raise AssertionError("it must not get here")


def test_another_gpu_is_free():
    with sole_generator("cuda:0"), sole_generator("cuda:1"):
        check_unused([])


def test_a_gpu_is_free_again_after_its_generator():
    with sole_generator("cuda:0"):
        pass
    check_unused(["cuda:0", "cuda:1"])


def test_a_check_finds_the_one_that_is_used():
    with sole_generator("cuda:1"), pytest.raises(UserError, match="cuda:1"):
        check_unused(["cuda:0", "cuda:1"])


def test_a_cpu_is_for_everyone(tmp_path):
    with sole_generator("cpu"), sole_generator("cpu"):
        check_unused(["cpu", "cpu"])
    assert list(tmp_path.iterdir()) == []


def test_what_is_about_to_end_is_waited_for(monkeypatch):
    monkeypatch.setattr(devices, "PATIENCE_S", 60.0)
    holds = FORK.Event()
    process = FORK.Process(target=hold_until_killed, args=(holds,))
    process.start()
    assert holds.wait(30)
    os.kill(process.pid, signal.SIGKILL)
    check_unused(["cuda:0"])
    process.join()


def hold_until_killed(holds):
    with sole_generator("cuda:0"):
        holds.set()
        signal.pause()


def test_without_patience_a_lock_that_is_held_is_an_error_that_names_it(tmp_path):
    lock = tmp_path / "some.lock"
    with (
        alone(lock),
        pytest.raises(Timeout, match="some.lock"),
        alone(lock, 0),
    ):
        raise AssertionError("it must not get here")
