"""A fine-tuning that is killed goes on at the next start and ends with the same bits."""

import os
import signal
from functools import partial
from pathlib import Path

import pytest
import torch
from cache_samples import FORK, exit_status
from experiment_samples import make_experiment

from online_aug.finetuning import loop
from online_aug.finetuning.run import ensure_finetuned

STEPS = {"steps": 4, "batch_size": 2, "rank": 2, "checkpoint_steps": 1}
KILLED = -signal.SIGKILL


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """A fork has none of its parent's threads, and torch would wait for them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def images(tmp_path_factory, tiny_model):
    """A folder with training images, and what an uninterrupted fine-tuning makes of them."""
    folder = tmp_path_factory.mktemp("whole")
    experiment = make_experiment(folder, tiny_model, finetune=STEPS)
    ensure_finetuned(experiment)
    return folder, contents(experiment.finetuned)


@pytest.fixture
def experiment(images, tmp_path, tiny_model):
    return make_experiment(images[0], tiny_model, finetune=STEPS | {"path": tmp_path / "finetuned"})


def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def die_at(monkeypatch, owner, name, count):
    """Kill the process on the `count`-th call of a function, before it does anything."""
    function, calls = getattr(owner, name), []

    def called(*args, **settings):
        calls.append(args)
        return die() if len(calls) == count else function(*args, **settings)

    monkeypatch.setattr(owner, name, called)


MOMENTS = {
    "before the first checkpoint": (loop, "save_checkpoint", 1),
    "while a checkpoint is written": (os, "fsync", 2),
    "before a checkpoint has its name": (Path, "replace", 3),
    "in the middle of the result": (Path, "write_text", 1),
    "before the result has its name": (Path, "rename", 1),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_at_any_moment_it_ends_with_the_same_bits(images, experiment, monkeypatch, moment):
    with monkeypatch.context() as patch:
        die_at(patch, *MOMENTS[moment])
        assert exit_status(partial(ensure_finetuned, experiment)) == KILLED
    assert not experiment.is_ready
    ensure_finetuned(experiment)
    assert contents(experiment.finetuned) == images[1]
    places = {path.suffix for path in experiment.finetuned.parent.iterdir()}
    assert places == {"", ".lock"}


def test_killed_from_outside_it_goes_on_from_its_last_checkpoint(
    images, experiment, monkeypatch, capsys
):
    begun = FORK.Event()
    with monkeypatch.context() as patch:
        save = loop.save_checkpoint

        def slow(folder, saved):
            save(folder, saved)
            if saved.step == 3:
                begun.set()
                signal.pause()

        patch.setattr(loop, "save_checkpoint", slow)
        process = FORK.Process(target=ensure_finetuned, args=(experiment,))
        process.start()
    assert begun.wait(60)
    process.kill()
    process.join()
    assert process.exitcode == KILLED
    ensure_finetuned(experiment)
    assert "fine-tuning the generator from step 3: 1/1" in capsys.readouterr().out
    assert contents(experiment.finetuned) == images[1]


def test_a_damaged_checkpoint_is_said_in_one_line_and_the_one_before_goes_on(
    images, experiment, monkeypatch, capsys, caplog
):
    with monkeypatch.context() as patch:
        die_at(patch, Path, "write_text", 1)
        assert exit_status(partial(ensure_finetuned, experiment)) == KILLED
    newest = max(experiment.finetuned.parent.glob("*.unfinished/checkpoints/*"))
    newest.write_bytes(newest.read_bytes()[:-1])
    ensure_finetuned(experiment)
    (line,) = [record.getMessage() for record in caplog.records if "checkpoint" in record.message]
    assert line == f"fine-tuning does not go on from {newest}: it is damaged"
    assert "from step 3" in capsys.readouterr().out
    assert contents(experiment.finetuned) == images[1]
