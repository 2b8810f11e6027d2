"""A run of two ranks that is stopped and goes on, on two ranks and on one."""

import shutil
import signal
from dataclasses import dataclass

import numpy as np
import pytest
from tiny_runs import (
    EPOCHS,
    IMAGES_AN_EPOCH,
    PLANNED,
    Story,
    count_images,
    ledger_of,
    read_metrics,
    read_summary,
    run_folder,
    start,
    wait_for,
)

pytestmark = pytest.mark.slow

SERVED = ("served_real", "served_fresh", "served_cached")


@dataclass
class Stories:
    """One run on two ranks, and the same one that went on on one rank."""

    two: Story
    one: Story


@pytest.fixture(scope="module")
def stories(pair, config):
    """Two ranks on a cold cache with a loader process each, stopped in their second epoch."""
    cache = config.parent / "cache_of_two"
    two, one = (Story(run_folder(config, name), cache) for name in ("two_ranks", "one_rank"))
    wishes = [f"cache.path={cache}", "data.workers=1"]
    launch = start(config, "two_ranks", *wishes, "devices.train=[cpu, cpu]")
    wait_for(two.has_epochs(1), launch)
    two.stop(launch, signal.SIGTERM)
    shutil.copytree(two.folder, one.folder)
    two.end(start(config, "two_ranks", *wishes, "devices.train=[cpu, cpu]"))
    one.end(start(config, "one_rank", *wishes, "devices.train=[cpu]"))
    return Stories(two, one)


def test_two_ranks_stop_together_and_go_on_together(stories):
    assert stories.two.statuses == [128 + signal.SIGTERM, 0], stories.two.said
    assert stories.two.left == [[], []]


def test_two_ranks_share_the_images_of_one_generation_process(stories):
    summary = read_summary(stories.two.folder)
    served = [summary[name] for name in SERVED]
    assert sum(served) == EPOCHS * IMAGES_AN_EPOCH
    assert all(served)
    assert 0 < summary["generated"] <= count_images(stories.two.cache) == PLANNED


def test_an_epoch_cut_in_two_is_logged_as_one(stories):
    epochs, summary = read_metrics(stories.two.folder), read_summary(stories.two.folder)
    for name in (*SERVED, "starved", "generated"):
        assert sum(epoch[name] for epoch in epochs) == summary[name]
    told = [sum(epoch[name] for name in (*SERVED, "starved")) for epoch in epochs]
    assert told == [IMAGES_AN_EPOCH] * EPOCHS


def test_each_launch_of_two_ranks_is_noted_once(stories):
    text = (stories.two.folder / "environment.json").read_text()
    assert text.count('"started"') == 2


@pytest.mark.parametrize("ranks", ["one", "two"])
def test_the_global_batches_are_those_of_a_run_on_one_rank(stories, config, ranks):
    told = ledger_of(getattr(stories, ranks).folder)
    expected = ledger_of(run_folder(config, "seed0"))
    assert np.array_equal(told[["index", "number"]], expected[["index", "number"]])


def test_what_was_counted_on_two_ranks_counts_on_one(stories):
    assert stories.one.statuses == [0], stories.one.said
    summary, rows = read_summary(stories.one.folder), ledger_of(stories.one.folder)
    served = [summary[name] for name in SERVED]
    assert served == np.bincount(rows["kind"], minlength=4).tolist()[:3]
