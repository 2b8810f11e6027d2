"""The studies of SGD-Mix: its choice of backgrounds, its refinement, and faulty maps."""

import csv
import re

import cv2
import numpy as np
import pytest

from online_aug.config.loading import find_recipe, load_config
from online_aug.data.sources import load_splits
from online_aug.experiment.experiment import Experiment
from online_aug.studies import noisy_saliency, refinement

SGD_MIX = {
    "method": {"name": "sgd_mix", "candidates": [2, 4], "strength": 0.5, "min_source_share": 0},
    "saliency": {"method": "spectral_residual"},
}

PASTE = ["method=[{name: paste}]", "devices.generate=auto"]


@pytest.fixture
def mixes(call):
    call.write(**SGD_MIX)
    return call


def table(call, name):
    with (call.out / f"{name}.csv").open() as file:
        return list(csv.DictReader(file))


def judged(call):
    return f"--judge={call.judge}"


@pytest.mark.slow
def test_more_candidates_hide_more_of_the_background_s_object(mixes):
    mixes("targets", "--images=8", "--candidates=1,7", "method.max_draws=1")
    rows = table(mixes, "targets")
    assert [row["candidates"] for row in rows] == ["1", "7"]
    few, all_others = (float(row["IoU of both"]) for row in rows)
    assert all_others > few
    assert (mixes.out / "targets_sheet.png").exists()


@pytest.mark.slow
def test_the_study_of_targets_repeats_its_files(mixes):
    mixes("targets", "--images=4")
    first = mixes.files()
    mixes("targets", "--images=4")
    assert mixes.files() == first


@pytest.mark.slow
def test_refinement_that_keeps_the_source_changes_nothing_inside(mixes):
    mixes("refinement", "--images=3", "--strengths=1", judged(mixes))
    rows = {row["images"]: row for row in table(mixes, "refinement")}
    assert float(rows["mix alone"]["change outside"]) == 0
    assert float(rows["refined at 1"]["change inside"]) > 1
    assert float(rows["kept at 1"]["change inside"]) == 0
    assert float(rows["kept at 1"]["change outside"]) > 1


@pytest.mark.slow
def test_maps_as_they_are_agree_with_themselves_and_inverted_ones_do_not(mixes):
    mixes("noisy_saliency", "--images=6", judged(mixes))
    rows = {row["maps"]: row for row in table(mixes, "noisy_saliency")}
    assert float(rows["as they are"]["IoU of masks"]) == 1
    assert float(rows["as they are"]["object in the mix"]) == 1
    assert float(rows["as they are"]["other object in the mix"]) == 0
    assert float(rows["inverted"]["IoU of masks"]) < 0.3
    assert list(rows) == list(noisy_saliency.FAULTS)


def test_a_shifted_map_is_the_map_elsewhere():
    values = np.zeros((64, 64), np.float32)
    cv2.circle(values, (32, 32), 8, 1.0, -1)
    moved = noisy_saliency.shifted(values, np.random.default_rng(0), 0.2)
    centre = np.array(np.nonzero(moved > 0.5)).mean(1)
    assert np.hypot(*(centre - 32)) == pytest.approx(0.2 * 64, abs=1)


@pytest.mark.parametrize("name", ["targets", "refinement", "noisy_saliency"])
def test_a_method_without_foregrounds_is_refused(call, name):
    assert "method.name must be one that cuts out foregrounds" in call.refusal(name)


@pytest.mark.parametrize(
    ("name", "argv", "said"),
    [
        ("targets", ["--images=9"], "--images must be at least 2 and at most 8"),
        ("targets", ["--images=4", "--candidates=8"], "--candidates must be .* at most 7"),
        (
            "refinement",
            PASTE,
            "method.name must be sgd_mix",
        ),
        (
            "refinement",
            ["--images=4", "--strengths=2"],
            "--strengths must be above 0",
        ),
        ("noisy_saliency", ["--images=9"], "--images must be at least 3 and at most 8"),
        ("noisy_saliency", ["--images=4", "--judge=none"], "--judge must be a file of weights"),
    ],
)
def test_what_cannot_be_studied_is_refused_in_a_line(mixes, name, argv, said):
    assert re.search(said, mixes.refusal(name, *argv))


@pytest.mark.slow
def test_training_with_faulty_maps_finds_their_masks_beside_the_images_names(mixes, monkeypatch):
    trained = []

    def with_accuracy(text, runs):
        trained.extend(runs)
        return text

    monkeypatch.setattr(noisy_saliency, "with_accuracy", with_accuracy)
    mixes("noisy_saliency", "--images=4", "--train", "--seeds=1", judged(mixes))
    assert [run.row for run in trained] == list(noisy_saliency.TRAINED)
    maps = {}
    for run in trained:
        experiment = Experiment(run.config, load_splits(run.config.data), "cpu")
        experiment.saliency.mask_files.check()
        maps[run.row] = experiment.saliency.mask_files.map_of(0)
    assert np.abs(maps["as they are"] + maps["inverted"] - 1).mean() < 0.2


@pytest.mark.parametrize("row", refinement.TRAINED)
def test_every_way_to_refine_can_be_trained_on_the_quickstart(row):
    config = load_config(find_recipe("quickstart"), refinement.TRAINED[row])
    assert config.mixing.is_synthetic
