"""One process at a time trains in a run directory."""

import os
import signal
from contextlib import contextmanager

import pytest

from online_aug.errors import UserError
from online_aug.reporting.run_lock import check_free, lock_path, sole_trainer

REFUSED = r"^run directory .*runs/x must be free, process \d+ on .*, started 2\S+ \S+, trains in it"


@contextmanager
def held_by_another(directory):
    """Another process holds the lock; its id."""
    reading, writing = os.pipe()
    owner = os.fork()
    if owner == 0:
        with sole_trainer(directory):
            os.write(writing, b"held")
            signal.pause()
    assert os.read(reading, 99) == b"held"
    try:
        yield owner
    finally:
        os.kill(owner, signal.SIGKILL)
        os.waitpid(owner, 0)


@pytest.fixture
def run(tmp_path):
    return tmp_path / "runs" / "x"


def test_a_run_directory_in_use_is_refused_with_its_owner(run):
    with held_by_another(run) as owner:
        with pytest.raises(UserError, match=REFUSED) as caught:
            check_free(run)
        assert f"process {owner} on" in str(caught.value)
        with pytest.raises(UserError, match=REFUSED), sole_trainer(run):
            raise AssertionError("both hold it")


def test_the_lock_of_a_killed_owner_is_free_at_once(run):
    with held_by_another(run):
        pass
    assert lock_path(run).exists()
    check_free(run)
    with sole_trainer(run):
        pass


def test_a_process_that_the_owner_forks_does_not_hold_it(run):
    with sole_trainer(run):
        child = os.fork()
        if child == 0:
            signal.pause()
    with held_by_another(run):
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def test_nothing_is_written_to_look_and_nothing_left_in_the_end(run):
    check_free(run)
    assert not run.parent.exists()
    with sole_trainer(run):
        assert [path.name for path in run.parent.iterdir()] == [".x.lock"]
    assert list(run.parent.iterdir()) == []


def test_a_second_task_of_slurm_is_told_what_to_start(run, monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "2")
    monkeypatch.delenv("RANK", raising=False)
    with held_by_another(run), pytest.raises(UserError, match="SLURM has started 2 tasks"):
        check_free(run)


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UserError, match="must be writable, got: Not a directory"),
        sole_trainer(tmp_path / "file" / "runs" / "x"),
    ):
        raise AssertionError("held")
