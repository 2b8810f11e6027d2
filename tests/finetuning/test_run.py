"""Fine-tuning as `train.py` asks for it: once, kept whole, and shared by processes."""

import fcntl
from concurrent.futures import ThreadPoolExecutor, wait

import pytest
import torch
from experiment_samples import make_experiment

from online_aug.diffusion.adapters import CONCEPTS_FILE
from online_aug.errors import UserError
from online_aug.finetuning.run import ensure_finetuned


@pytest.fixture
def experiment(tmp_path, tiny_model):
    return make_experiment(tmp_path, tiny_model)


@pytest.fixture
def is_not_run(monkeypatch):
    def run(experiment, folder, world, after_step):
        raise AssertionError("fine-tuned again")

    monkeypatch.setattr(run, "_finetune", run)


@pytest.fixture
def fakes(monkeypatch):
    """Results that only say they are whole, and how many were made."""
    made = []

    def run(experiment, folder, world, after_step):
        made.append(folder)
        folder.mkdir()
        (folder / CONCEPTS_FILE).write_text("[]")

    monkeypatch.setattr(run, "_finetune", run)
    return made


def test_a_result_is_made_and_leaves_nothing_else_behind(experiment):
    ensure_finetuned(experiment)
    assert experiment.is_ready
    names = {path.name for path in experiment.finetuned.parent.iterdir()}
    assert names == {experiment.finetuned.name, f"{experiment.finetuned.name}.lock"}
    assert experiment.contexts["diff_mix"].generator_fingerprint


def test_a_result_is_found_again(experiment, fakes, tmp_path, tiny_model):
    ensure_finetuned(experiment)
    ensure_finetuned(experiment)
    ensure_finetuned(make_experiment(tmp_path, tiny_model, run={"seed": 9}))
    assert len(fakes) == 1


def test_nothing_is_done_where_it_is_off(tmp_path, tiny_model, is_not_run):
    experiment = make_experiment(tmp_path, tiny_model, finetune={"enabled": False})
    ensure_finetuned(experiment)
    assert not (tmp_path / "finetuned").exists()


def test_nothing_is_learned_where_adapters_from_elsewhere_are_named(
    tmp_path, tiny_model, is_not_run
):
    tokens = {"<crow>": torch.zeros(128), "<jay>": torch.ones(128)}
    torch.save(tokens, tmp_path / "tokens.pt")
    named = {"path": tmp_path / "tokens.pt", "mode": "textual_inversion"}
    ensure_finetuned(make_experiment(tmp_path, tiny_model, finetune=named))
    assert not list(tmp_path.glob("*.lock"))


def test_a_second_process_waits_and_takes_the_result(experiment, is_not_run):
    folder = experiment.finetuned
    folder.parent.mkdir()
    with ThreadPoolExecutor() as pool, folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # as the first process holds it
        second = pool.submit(ensure_finetuned, experiment)
        assert wait([second], 0.3).done == set()
        folder.mkdir()
        (folder / CONCEPTS_FILE).write_text("[]")
        lock.close()
        second.result(30)


def test_a_second_process_does_it_when_the_first_one_was_killed(experiment, fakes):
    folder = experiment.finetuned
    folder.parent.mkdir()
    folder.with_suffix(".unfinished").mkdir()
    with ThreadPoolExecutor() as pool, folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        second = pool.submit(ensure_finetuned, experiment)
        assert wait([second], 0.3).done == set()
        lock.close()  # as the kernel does it
        second.result(30)
    assert fakes == [folder]


def test_a_failure_leaves_no_result(experiment, monkeypatch):
    def fail(*_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr("online_aug.finetuning.loop.finetune", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        ensure_finetuned(experiment)
    assert not experiment.is_ready
    names = {path.suffix for path in experiment.finetuned.parent.iterdir()}
    assert names == {".lock", ".unfinished"}


def test_a_folder_that_cannot_be_written_is_one_clear_line(tmp_path, tiny_model):
    (tmp_path / "file").touch()
    experiment = make_experiment(
        tmp_path, tiny_model, finetune={"path": tmp_path / "file" / "below"}
    )
    with pytest.raises(UserError, match="^finetune.path must be a writable folder, got") as caught:
        ensure_finetuned(experiment)
    assert "\n" not in str(caught.value)
