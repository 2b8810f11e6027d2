"""A run that keeps no images for validation: its last epoch counts."""

import shutil

import pytest
from tiny_runs import EPOCHS, Launch, read_metrics, read_summary, run_folder, start

from online_aug.data.embedded import embedded_splits

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(config, embedded_root, tmp_path_factory):
    """Train on digits without their validation images; return the run directory and the output."""
    embedded_splits("digits", embedded_root)
    digits = tmp_path_factory.mktemp("digits")
    for split in ("train", "test"):
        shutil.copytree(embedded_root / "digits" / split, digits / split)
    keys = (f"data.source={digits}", "data.val_fraction=0", "mixing.synthetic_probability=0")
    told = start(config, "whole", *keys).succeed().out
    return run_folder(config, "whole"), told


def test_every_epoch_is_logged_without_a_figure_on_validation(run):
    epochs = read_metrics(run[0])
    assert len(epochs) == EPOCHS
    assert {epoch["val_top1"] for epoch in epochs} == {None}


def test_no_best_epoch_is_told_or_kept(run):
    folder, told = run
    summary = read_summary(folder)
    assert summary["top1"] > 0
    assert summary["top1_best_val"] is summary["best_val_epoch"] is None
    assert "best validation" not in told
    assert not (folder / "best.safetensors").exists()


def test_the_best_one_cannot_be_asked_for(run):
    launch = Launch("-m", "online_aug", "evaluate", run[0], "--best")
    assert launch.wait() == 2
    assert "--best must be left out for a run without validation images" in launch.err
    assert "Traceback" not in launch.err
