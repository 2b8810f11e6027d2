"""Fine-tuning as `train.py` asks for it: once, kept whole, and shared by processes."""

import fcntl
from concurrent.futures import ThreadPoolExecutor, wait

import pytest
import torch
from recipe_samples import make_recipe

from online_aug.diffusion.adapters import CONCEPTS_FILE
from online_aug.errors import UserError
from online_aug.finetuning.run import ensure_finetuned


@pytest.fixture
def recipe(tmp_path, tiny_model):
    return make_recipe(tmp_path, tiny_model)


@pytest.fixture
def is_not_run(monkeypatch):
    def run(recipe, folder, world, after_step):
        raise AssertionError("fine-tuned again")

    monkeypatch.setattr(run, "_finetune", run)


@pytest.fixture
def fakes(monkeypatch):
    """Results that only say they are whole, and how many were made."""
    made = []

    def run(recipe, folder, world, after_step):
        made.append(folder)
        folder.mkdir()
        (folder / CONCEPTS_FILE).write_text("[]")

    monkeypatch.setattr(run, "_finetune", run)
    return made


def test_a_result_is_made_and_leaves_nothing_else_behind(recipe):
    ensure_finetuned(recipe)
    assert recipe.is_ready
    names = {path.name for path in recipe.finetuned.parent.iterdir()}
    assert names == {recipe.finetuned.name, f"{recipe.finetuned.name}.lock"}
    assert recipe.contexts["diff_mix"].generator_fingerprint


def test_a_result_is_found_again(recipe, fakes, tmp_path, tiny_model):
    ensure_finetuned(recipe)
    ensure_finetuned(recipe)
    ensure_finetuned(make_recipe(tmp_path, tiny_model, run={"seed": 9}))
    assert len(fakes) == 1


def test_nothing_is_done_where_it_is_off(tmp_path, tiny_model, is_not_run):
    recipe = make_recipe(tmp_path, tiny_model, finetune={"enabled": False})
    ensure_finetuned(recipe)
    assert not (tmp_path / "finetuned").exists()


def test_nothing_is_learned_where_adapters_from_elsewhere_are_named(
    tmp_path, tiny_model, is_not_run
):
    tokens = {"<crow>": torch.zeros(128), "<jay>": torch.ones(128)}
    torch.save(tokens, tmp_path / "tokens.pt")
    named = {"path": tmp_path / "tokens.pt", "mode": "textual_inversion"}
    ensure_finetuned(make_recipe(tmp_path, tiny_model, finetune=named))
    assert not list(tmp_path.glob("*.lock"))


def test_a_second_process_waits_and_takes_the_result(recipe, is_not_run):
    folder = recipe.finetuned
    folder.parent.mkdir()
    with ThreadPoolExecutor() as pool, folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # as the first process holds it
        second = pool.submit(ensure_finetuned, recipe)
        assert wait([second], 0.3).done == set()
        folder.mkdir()
        (folder / CONCEPTS_FILE).write_text("[]")
        lock.close()
        second.result(30)


def test_a_second_process_does_it_when_the_first_one_was_killed(recipe, fakes):
    folder = recipe.finetuned
    folder.parent.mkdir()
    folder.with_suffix(".unfinished").mkdir()
    with ThreadPoolExecutor() as pool, folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        second = pool.submit(ensure_finetuned, recipe)
        assert wait([second], 0.3).done == set()
        lock.close()  # as the kernel does it
        second.result(30)
    assert fakes == [folder]


def test_a_failure_leaves_no_result(recipe, monkeypatch):
    def fail(*_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr("online_aug.finetuning.loop.finetune", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        ensure_finetuned(recipe)
    assert not recipe.is_ready
    names = {path.suffix for path in recipe.finetuned.parent.iterdir()}
    assert names == {".lock", ".unfinished"}


def test_a_folder_that_cannot_be_written_is_one_clear_line(tmp_path, tiny_model):
    (tmp_path / "file").touch()
    recipe = make_recipe(tmp_path, tiny_model, finetune={"path": tmp_path / "file" / "below"})
    with pytest.raises(UserError, match="^finetune.path must be a writable folder, got") as caught:
        ensure_finetuned(recipe)
    assert "\n" not in str(caught.value)
