"""A run that is served again what another was served, and runs that cannot go on."""

import shutil

import numpy as np
import pytest
from tiny_runs import EPOCHS, ledger_of, read_summary, run_folder, start

pytestmark = pytest.mark.slow

NO_GENERATOR = "mixing.synthetic_probability=0"


@pytest.fixture(scope="module")
def whole(pair, config):
    """The directory of a run that was never stopped."""
    return run_folder(config, "seed0")


def test_a_replay_ends_with_the_same_weights_and_generates_nothing(whole, config):
    launch = start(config, "replayed", f"run.replay={whole}").succeed()
    folder = run_folder(config, "replayed")
    files = [place / "model.safetensors" for place in (folder, whole)]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert np.array_equal(ledger_of(folder), ledger_of(whole))
    assert read_summary(folder)["generated"] == 0
    assert "no generator" in launch.out
    assert not (folder / "generator.log").exists()


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_whose_cache_was_emptied_is_one_line_and_changes_nothing(whole, config):
    folder, cache = run_folder(config, "emptied"), config.parent / "emptied_cache"
    shutil.copytree(whole, folder)
    before = contents(folder)
    launch = start(config, "emptied", f"run.epochs={EPOCHS + 1}", f"cache.path={cache}")
    assert launch.wait() == 2
    assert "cache.path must be the cache that this run was served from" in launch.err
    assert launch.err.count("\n") == 1
    assert contents(folder) == before
    assert not cache.exists()


def test_divided_weights_do_not_go_on_on_another_number_of_ranks(pair, config):
    zero = "classifier.deepspeed.zero_optimization.stage=1"
    start(config, "divided", zero, "run.epochs=1", NO_GENERATOR).succeed()
    before = contents(run_folder(config, "divided"))
    launch = start(
        config, "divided", zero, "run.epochs=2", NO_GENERATOR, "devices.train=[cpu, cpu]"
    )
    assert launch.wait() == 2
    assert "must be resumed on as many training devices as wrote it (1, 2 now)" in launch.err
    assert launch.err.count("\n") == 1
    assert contents(run_folder(config, "divided")) == before


@pytest.mark.parametrize(
    ("wish", "part"),
    [
        ("run.seed=1", "run.seed (0 there, 1 now): set these as they are there"),
        ("cache.path={nowhere}", "cache.path must be the cache of run.replay"),
        ("run.epochs=9", "has 0 of the 12 steps of epoch 5"),
        ("run.replay={nowhere}", "run.replay must be the directory of a run"),
    ],
)
def test_a_replay_that_cannot_be_is_one_line_and_writes_nothing(whole, config, wish, part):
    nowhere = config.parent / "nowhere"
    launch = start(config, "refused", f"run.replay={whole}", wish.format(nowhere=nowhere))
    assert launch.wait() == 2
    assert part in launch.err
    assert launch.err.count("\n") == 1
    assert not nowhere.exists()
    assert not run_folder(config, "refused").exists()
