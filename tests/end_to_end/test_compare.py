"""A comparison that is stopped and goes on: both sides are trained once, and nothing is left."""

import signal

import pytest
import yaml
from tiny_runs import Launch, Story, read_metrics, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.nightly]

EPOCHS = 3


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, embedded_root):
    """The launches of one comparison; a signal stops the first in its second training."""
    folder = tmp_path_factory.mktemp("comparison")
    recipe = folder / "tiny.yaml"
    content = {
        "data": {"source": "digits", "root": str(embedded_root), "image_size": 32},
        "method": {"name": "paste", "candidates": [2, 4]},
        "saliency": {"method": "spectral_residual"},
        "mixing": {"synthetic_probability": 0.5},
        "classifier": {"name": "test_resnet"},
        "cache": {"path": str(folder / "cache")},
        "run": {"epochs": EPOCHS, "dir": str(folder / "runs"), "checkpoint_epochs": 1},
        "optim": {"batch_size": 10},
    }
    recipe.write_text(yaml.safe_dump(content))
    place = folder / "runs" / "compare-tiny"
    story = Story(place / "augmented-seed0", folder / "cache")
    command = ("-m", "online_aug", "compare", recipe, "--seeds=1")
    launch = Launch(*command)
    wait_for(story.has_epochs(1), launch)
    story.stop(launch, signal.SIGTERM)
    story.end(Launch(*command))
    return story


def test_a_signal_stops_the_training_and_the_comparison(stopped):
    assert stopped.statuses == [128 + signal.SIGTERM, 0]
    assert "interrupted at augmented, seed 0: the same command goes on" in stopped.said[0]
    assert stopped.left == [[], []]


def test_the_same_command_repeats_nothing_and_ends_with_the_table(stopped):
    said = stopped.said[1]
    assert "vanilla, seed 0 (1 of 2): finished before, test " in said
    assert "resumed at epoch " in said
    assert [epoch["epoch"] for epoch in read_metrics(stopped.folder)] == [*range(EPOCHS)]
    assert "| test - vanilla |" in (stopped.folder.parent / "compare.md").read_text()
    assert said.splitlines()[-1].endswith("compare.md")
