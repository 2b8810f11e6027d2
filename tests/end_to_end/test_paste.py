"""Runs that paste: no generator, no model on disk, and the same images however they are run."""

import signal

import numpy as np
import pytest
from tiny_runs import (
    EPOCHS,
    IMAGES_AN_EPOCH,
    Launch,
    Story,
    count_images,
    generators_of,
    ledger_of,
    read_metrics,
    read_summary,
    run_folder,
    start,
    wait_for,
    write_config,
)

from online_aug.loader.slots import Kind

pytestmark = pytest.mark.slow

PASTING = (
    "method.name=paste",
    "method.candidates=[2, 4]",
    "method.feather=0.1",
    "saliency.method=spectral_residual",
    "mixing.synthetic_probability=0.6",
    "generation.model=/no/such/model",
)


@pytest.fixture(scope="module")
def pasting(tmp_path_factory, embedded_root):
    """A configuration for a diffusion model that does not exist."""
    return write_config(tmp_path_factory.mktemp("pasting"), "/no/such/model", embedded_root)


@pytest.fixture(scope="module")
def whole(pasting):
    """A run on one rank; its story has the generators there were while it trained."""
    story = Story(run_folder(pasting, "whole"), pasting.parent / "cache")
    launch = start(pasting, "whole", *PASTING, "data.workers=1")
    wait_for(story.has_epochs(1), launch)
    story.left.append(generators_of(story.folder))
    story.end(launch)
    return story


def test_a_run_needs_no_generator_and_leaves_no_record(whole):
    assert (whole.statuses, whole.left) == ([0], [[], []]), whole.said
    assert count_images(whole.cache) == 0
    assert "no generator" in whole.said[0]


def test_every_slot_is_real_composed_or_refused_with_a_reason(whole):
    rows, summary = ledger_of(whole.folder), read_summary(whole.folder)
    kinds = np.bincount(rows["kind"], minlength=5)
    assert (rows["number"] == -1).all()
    assert summary["served_composed"] == kinds[Kind.COMPOSED] > 0
    assert summary["starved"] == kinds[Kind.STARVED] == sum(summary["refusals"].values())
    assert all(reason.startswith("saliency: ") for reason in summary["refusals"])
    assert sum(summary[f"served_{name}"] for name in ("fresh", "cached")) == 0
    assert kinds.sum() == EPOCHS * IMAGES_AN_EPOCH
    assert (summary["generated"], summary["rejected"], summary["reused"]) == (0, 0, 0)


def test_gallery_and_report_show_what_was_composed(whole):
    assert (whole.folder / "gallery.png").stat().st_size > 10_000
    page = (whole.folder / "report.html").read_text()
    assert "training images, composed without a generator" in page
    assert "Synthetic images, drawn at random" in page


def losses(folder):
    return [epoch["train_loss"] for epoch in read_metrics(folder)]


def test_a_run_that_was_stopped_trains_as_one_that_was_not(whole, pasting):
    story = Story(run_folder(pasting, "stopped"), whole.cache)
    launch = start(pasting, "stopped", *PASTING)
    wait_for(story.has_epochs(1), launch)
    story.stop(launch, signal.SIGTERM)
    story.end(start(pasting, "stopped", *PASTING))
    assert story.statuses == [128 + signal.SIGTERM, 0], story.said
    assert np.array_equal(ledger_of(story.folder), ledger_of(whole.folder))
    assert losses(story.folder) == losses(whole.folder)
    refusals = (read_summary(each.folder)["refusals"] for each in (story, whole))
    assert next(refusals) == next(refusals)


def test_a_replay_trains_on_the_same_images_with_another_cache(whole, pasting, tmp_path):
    wishes = (f"run.replay={whole.folder}", f"cache.path={tmp_path / 'new'}")
    start(pasting, "replay", *PASTING, *wishes).succeed()
    assert losses(run_folder(pasting, "replay")) == losses(whole.folder)


def test_two_ranks_are_served_the_global_batches_of_one(whole, pasting):
    start(pasting, "two", *PASTING, "devices.train=[cpu, cpu]").succeed()
    folder = run_folder(pasting, "two")
    assert np.array_equal(ledger_of(folder), ledger_of(whole.folder))
    assert read_summary(folder)["refusals"] == read_summary(whole.folder)["refusals"]


def test_a_cache_cannot_be_filled_with_what_is_composed_as_it_is_served(pasting):
    launch = Launch("-m", "online_aug", "fill", pasting, *PASTING)
    assert launch.wait() == 2
    assert launch.err.splitlines() == [
        "error: method must be one whose images a generator makes, to fill a cache, got paste, "
        "whose images are composed as they are served: there is nothing to fill"
    ]


def test_paste_and_a_generating_method_share_a_run(config, tmp_path):
    methods = (
        "method=[{name: paste, candidates: [2, 4], min_source_share: 0}, "
        "{name: diff_mix, strength: [0.5, 0.9]}]",
        "saliency.method=spectral_residual",
        "run.epochs=1",
        "finetune.enabled=false",
    )
    start(config, "shared", *methods, f"cache.path={tmp_path / 'cache'}").succeed()
    summary = read_summary(run_folder(config, "shared"))
    assert summary["served_composed"] > 0
    assert summary["generated"] > 0
    assert summary["served_fresh"] > 0
