"""Fine-tuning as every command asks for it: once, whole, shared by processes, resumed."""

import fcntl
import os
import signal
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path

import pytest
import torch
from cache_samples import FORK, exit_status
from experiment_samples import make_experiment
from safetensors.torch import load_file, save_file
from tiny_model import copy_with

from online_aug.diffusion.adapters import CONCEPTS_FILE
from online_aug.errors import UserError
from online_aug.finetuning import loop
from online_aug.finetuning.run import ensure_finetuned


@pytest.fixture
def experiment(tmp_path, tiny_model):
    return make_experiment(tmp_path, tiny_model)


@pytest.fixture
def is_not_run(monkeypatch):
    def run(experiment, folder, world, after_step):
        raise AssertionError("fine-tuned again")

    monkeypatch.setattr("online_aug.finetuning.run._finetune", run)


@pytest.fixture
def fakes(monkeypatch):
    """Make empty results that are marked as whole; the folders of those made."""
    made = []

    def run(experiment, folder, world, after_step):
        made.append(folder)
        folder.mkdir()
        (folder / CONCEPTS_FILE).write_text("[]")

    monkeypatch.setattr("online_aug.finetuning.run._finetune", run)
    return made


@pytest.mark.slow
def test_a_result_is_made_and_leaves_nothing_else_behind(experiment):
    ensure_finetuned(experiment)
    assert experiment.diffusion.is_ready
    names = {path.name for path in experiment.diffusion.finetuned.parent.iterdir()}
    assert names == {
        experiment.diffusion.finetuned.name,
        f"{experiment.diffusion.finetuned.name}.lock",
    }
    assert experiment.contexts["diff_mix"].generator_fingerprint


def test_a_result_is_found_again(experiment, fakes, tmp_path, tiny_model):
    ensure_finetuned(experiment)
    ensure_finetuned(experiment)
    ensure_finetuned(make_experiment(tmp_path, tiny_model, run={"seed": 9}))
    assert len(fakes) == 1


def test_nothing_is_done_if_it_is_off(tmp_path, tiny_model, is_not_run):
    experiment = make_experiment(tmp_path, tiny_model, finetune={"enabled": False})
    ensure_finetuned(experiment)
    assert not (tmp_path / "finetuned").exists()


def test_nothing_is_learned_if_adapters_from_elsewhere_are_named(tmp_path, tiny_model, is_not_run):
    tokens = {"<crow>": torch.zeros(128), "<jay>": torch.ones(128)}
    torch.save(tokens, tmp_path / "tokens.pt")
    named = {"path": tmp_path / "tokens.pt", "mode": "textual_inversion"}
    ensure_finetuned(make_experiment(tmp_path, tiny_model, finetune=named))
    assert not list(tmp_path.glob("*.lock"))


def test_a_second_process_waits_and_takes_the_result(experiment, is_not_run, capsys):
    folder = experiment.diffusion.finetuned
    folder.parent.mkdir()
    with ThreadPoolExecutor() as pool, folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # as the first process holds it
        second = pool.submit(ensure_finetuned, experiment)
        said = ""
        while "waiting for another process, which fine-tunes the generator: 0/" not in said:
            assert wait([second], 0.3).done == set()
            said += capsys.readouterr().out
        folder.mkdir()
        (folder / CONCEPTS_FILE).write_text("[]")
        lock.close()
        second.result(30)


def test_a_second_process_takes_over_from_one_that_was_killed(experiment, fakes):
    folder = experiment.diffusion.finetuned
    folder.parent.mkdir()
    folder.with_suffix(".unfinished").mkdir()
    with ThreadPoolExecutor() as pool, folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        second = pool.submit(ensure_finetuned, experiment)
        assert wait([second], 0.3).done == set()
        lock.close()  # as the kernel does it
        second.result(30)
    assert fakes == [folder]


def test_a_spoilt_model_is_refused_before_it_is_fine_tuned(tmp_path, tiny_model):
    model = copy_with(tiny_model, tmp_path / "model")
    (path,) = (model / "unet").glob("*.safetensors")
    tensors = load_file(path)
    tensors["conv_out.bias"].fill_(float("nan"))
    save_file(tensors, path)
    experiment = make_experiment(tmp_path, model)
    with pytest.raises(UserError, match=r"^generation\.model must have finite weights"):
        ensure_finetuned(experiment)
    assert not experiment.diffusion.is_ready


def test_a_failure_leaves_no_result(experiment, monkeypatch):
    def fail(*_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr("online_aug.finetuning.loop.finetune", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        ensure_finetuned(experiment)
    assert not experiment.diffusion.is_ready
    names = {path.suffix for path in experiment.diffusion.finetuned.parent.iterdir()}
    assert names == {".lock", ".unfinished"}


def test_a_folder_that_cannot_be_written_is_one_clear_line(tmp_path, tiny_model):
    (tmp_path / "file").touch()
    experiment = make_experiment(
        tmp_path, tiny_model, finetune={"path": tmp_path / "file" / "below"}
    )
    with pytest.raises(UserError, match="^finetune.path must be a writable folder, got") as caught:
        ensure_finetuned(experiment)
    assert "\n" not in str(caught.value)


STEPS = {"steps": 4, "batch_size": 2, "rank": 2, "checkpoint_steps": 1}


KILLED = -signal.SIGKILL


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def images(tmp_path_factory, tiny_model):
    """A folder with training images, and the files of a fine-tuning that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    experiment = make_experiment(folder, tiny_model, finetune=STEPS)
    ensure_finetuned(experiment)
    return folder, contents(experiment.diffusion.finetuned)


@pytest.fixture
def long_experiment(images, tmp_path, tiny_model):
    return make_experiment(images[0], tiny_model, finetune=STEPS | {"path": tmp_path / "finetuned"})


def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def die_at(monkeypatch, owner, name, count):
    """Kill the process on the call of a function with this number, before it does anything."""
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


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_at_any_moment_it_ends_with_the_same_bits(
    images, long_experiment, monkeypatch, moment
):
    with monkeypatch.context() as patch:
        die_at(patch, *MOMENTS[moment])
        assert exit_status(partial(ensure_finetuned, long_experiment)) == KILLED
    assert not long_experiment.diffusion.is_ready
    ensure_finetuned(long_experiment)
    assert contents(long_experiment.diffusion.finetuned) == images[1]
    places = {path.suffix for path in long_experiment.diffusion.finetuned.parent.iterdir()}
    assert places == {"", ".lock"}


@pytest.mark.slow
def test_killed_from_outside_it_goes_on_from_its_last_checkpoint(
    images, long_experiment, monkeypatch, capsys
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
        process = FORK.Process(target=ensure_finetuned, args=(long_experiment,))
        process.start()
    assert begun.wait(60)
    process.kill()
    process.join()
    assert process.exitcode == KILLED
    ensure_finetuned(long_experiment)
    assert "fine-tuning the generator from step 3: 1/1" in capsys.readouterr().out
    assert contents(long_experiment.diffusion.finetuned) == images[1]


@pytest.mark.slow
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(
    images, long_experiment, monkeypatch, capsys, caplog
):
    with monkeypatch.context() as patch:
        die_at(patch, Path, "write_text", 1)
        assert exit_status(partial(ensure_finetuned, long_experiment)) == KILLED
    newest = max(long_experiment.diffusion.finetuned.parent.glob("*.unfinished/checkpoints/*"))
    newest.write_bytes(newest.read_bytes()[:-1])
    ensure_finetuned(long_experiment)
    (line,) = [record.getMessage() for record in caplog.records if "checkpoint" in record.message]
    assert line == f"fine-tuning does not go on from {newest}: it is damaged"
    assert "from step 3" in capsys.readouterr().out
    assert contents(long_experiment.diffusion.finetuned) == images[1]


def test_an_interrupted_fine_tuning_says_from_which_step_it_goes_on(
    experiment, monkeypatch, capsys
):
    def interrupted(pipeline, task, folder, *rest):
        (folder / "checkpoints").mkdir()
        (folder / "checkpoints" / "step_00000004.pt").write_bytes(b"")
        raise KeyboardInterrupt

    monkeypatch.setattr("online_aug.finetuning.loop.finetune", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ensure_finetuned(experiment)
    assert (
        "interrupted: the same command goes on from step 4 of the fine" in capsys.readouterr().out
    )
