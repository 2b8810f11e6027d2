"""A run killed between two checkpoints, and one that is served again what another was served."""

import os
import shutil
import signal

import numpy as np
import pytest
from tiny_runs import EPOCHS, read_metrics, read_summary, run_folder, start, wait_for

from online_aug.loader.ledger import Ledger

pytestmark = pytest.mark.slow

STEPS, BATCH_SIZE = 12, 10


def ledger(folder):
    rows = Ledger(folder / "ledger", batch_size=BATCH_SIZE, steps=STEPS)
    return np.concatenate([rows.epoch(number) for number in range(EPOCHS)])


@pytest.fixture(scope="module")
def whole(pair, config):
    """A run that was never stopped."""
    return run_folder(config, "seed0")


@pytest.fixture(scope="module")
def torn(pair, config):
    """The same run, killed in the middle of its second epoch."""
    wish = "run.checkpoint_steps=5"
    folder = run_folder(config, "torn")
    launch = start(config, "torn", wish)
    wait_for((folder / "checkpoints" / "step_00000015" / "complete.json").exists, launch)
    launch.process.kill()
    launch.wait()
    start(config, "torn", wish).succeed()
    return folder


def test_a_killed_run_ends_with_the_losses_of_one_that_was_not_to_the_last_bit(torn, whole):
    figures = ("train_loss", "val_top1", "step", "lr")
    told = [[{k: epoch[k] for k in figures} for epoch in read_metrics(f)] for f in (torn, whole)]
    assert told[0] == told[1]


def test_a_killed_run_ends_with_the_weights_of_one_that_was_not(torn, whole):
    files = [folder / "model.safetensors" for folder in (torn, whole)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_the_ledger_of_a_killed_run_is_whole(torn, whole):
    told, expected = ledger(torn), ledger(whole)
    assert (told["index"] == expected["index"]).all()
    assert (told["number"] == expected["number"]).all()


@pytest.fixture
def _half_the_cores():
    """What is started computes with as many threads as if it had left the others to a generator."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(cores)[: max(1, len(cores) // 2)])
    yield
    os.sched_setaffinity(0, cores)


@pytest.mark.usefixtures("_half_the_cores")
def test_a_replay_ends_with_the_same_weights_and_generates_nothing(torn, whole, config):
    launch = start(config, "replayed", f"run.replay={torn}").succeed()
    folder = run_folder(config, "replayed")
    files = [place / "model.safetensors" for place in (folder, whole)]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert (ledger(folder) == ledger(torn)).all()
    assert read_summary(folder)["generated"] == 0
    assert "no generation" in launch.out
    assert not (folder / "generator.log").exists()


@pytest.fixture(scope="module")
def moved(pair, config):
    """The same run on two ranks, stopped in its second epoch, gone on with on one."""
    folder = run_folder(config, "moved")
    launch = start(config, "moved", "devices.train=[cpu, cpu]")
    wait_for(lambda: read_metrics(folder), launch)
    launch.process.send_signal(signal.SIGTERM)
    assert launch.wait() == 128 + signal.SIGTERM
    start(config, "moved", "devices.train=[cpu]").succeed()
    return folder


def test_a_run_of_two_ranks_goes_on_on_one_with_the_same_global_batches(moved, whole):
    told, expected = ledger(moved), ledger(whole)
    assert (told["index"] == expected["index"]).all()
    assert (told["number"] == expected["number"]).all()


def test_what_was_counted_on_two_ranks_counts_on_one(moved):
    summary, rows = read_summary(moved), ledger(moved)
    served = [summary[f"served_{kind}"] for kind in ("real", "fresh", "cached")]
    assert served == np.bincount(rows["kind"], minlength=4).tolist()[:3]


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
    start(config, "divided", zero, "run.epochs=1").succeed()
    before = contents(run_folder(config, "divided"))
    launch = start(config, "divided", zero, "run.epochs=2", "devices.train=[cpu, cpu]")
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
def test_a_replay_that_cannot_be_is_one_line_and_writes_nothing(torn, config, wish, part):
    nowhere = config.parent / "nowhere"
    launch = start(config, "refused", f"run.replay={torn}", wish.format(nowhere=nowhere))
    assert launch.wait() == 2
    assert part in launch.err
    assert launch.err.count("\n") == 1
    assert not nowhere.exists()
    assert not run_folder(config, "refused").exists()
