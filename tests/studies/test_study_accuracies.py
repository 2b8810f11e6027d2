"""The studies that train: labels, reuse and overhead, and the judge of others."""

import csv
import re
import shutil

import pytest
from comparison_samples import finish

from online_aug.comparison.launches import Launches
from online_aug.errors import RunError

FEW = ("--seeds=1", "run.epochs=1")


def table(call, name):
    with (call.out / f"{name}.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_labels_are_compared_on_the_same_images_and_finished_runs_are_not_repeated(call):
    text = call("labels", "--gammas=0.8", *FEW)
    rows = table(call, "labels")
    assert [row["label"] for row in rows] == ["hard, source", "gamma 0.8", "hard, target"]
    assert "## Accuracy" in text
    weights = call.out / "runs" / "gamma_0.8-seed0" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    assert call("labels", "--gammas=0.8", *FEW) == text
    assert weights.stat().st_mtime_ns == before


@pytest.fixture
def launched(monkeypatch):
    """Runs that would be launched, in order; each leaves the files of a finished one."""
    started = []

    def run(self, command, run, *, is_shown):
        started.append(run)
        made = run.config.generation.variants_per_image if run.config.mixing.is_synthetic else 0
        changes = {"generated": 8 * made, "wall_s": 10.0 + made, "samples_per_insert": 3.0}
        finish(run, 0.5 + 0.1 * run.seed, **changes)
        return 0

    monkeypatch.setattr(Launches, "run", run)
    return started


def test_reuse_trains_with_each_number_of_images_and_waits_for_all(call, launched):
    few = ("--seeds=2", "run.epochs=1", "mixing.max_times_sampled=2")
    text = call("reuse", "--variants=1,3", *few)
    assert [run.config.generation.variants_per_image for run in launched] == [1, 3, 1, 3]
    assert {run.config.mixing.starvation for run in launched} == {"wait"}
    assert {run.config.mixing.max_times_sampled for run in launched} == {None}
    rows = table(call, "reuse")
    assert [float(row["unique images"]) for row in rows] == [8, 24]
    assert [float(row["test accuracy"]) for row in rows] == [0.55, 0.55]
    assert "| 3 an image - 1 an image |" not in text
    assert "5 optimizer steps in each run" in text


def test_overhead_is_the_time_added_to_vanilla_from_a_cache_of_its_own(call, launched):
    call("overhead", "--seeds=2", "run.epochs=1")
    rows = {row["training"]: row for row in table(call, "overhead")}
    assert list(rows) == ["vanilla", "CutMix", "online", "all images waited for"]
    assert float(rows["vanilla"]["time added"]) == 0
    assert float(rows["online"]["time added"]) == pytest.approx(0.2)
    caches = [run.config.cache.path for run in launched if run.config.mixing.is_synthetic]
    assert len(set(caches)) == len(caches) == 4
    assert launched[1].config.optim.cutmix == 1


def test_a_second_call_with_more_seeds_trains_only_those(call, launched):
    call("labels", "--gammas=0.8", *FEW)
    assert [run.seed for run in launched] == [0, 0, 0]
    call("labels", "--gammas=0.8", "--seeds=2", "run.epochs=1")
    assert [run.seed for run in launched[3:]] == [1, 1, 1]


def test_a_training_that_fails_is_told_with_its_log(call, monkeypatch):
    monkeypatch.setattr(Launches, "run", lambda *_, **__: 1)
    with pytest.raises(RunError, match=r"hard, source, seed 0 ended with status 1, see .*\.log"):
        call("labels", *FEW)


@pytest.mark.parametrize(
    ("name", "argv", "said"),
    [
        ("labels", ["method=[{name: diff_aug}]"], "method.name must be one with a soft label"),
        ("labels", ["--gammas=0"], "--gammas must be above 0"),
        ("labels", ["--seeds=0"], "--seeds must be at least 1, got 0"),
        ("reuse", ["--variants=0"], "--variants must be at least 1"),
        ("reuse", ["mixing.synthetic_probability=0"], "method must be one whose images"),
        ("overhead", ["mixing.synthetic_probability=0"], "mixing.synthetic_probability must be"),
    ],
)
def test_what_cannot_be_studied_is_refused_in_a_line(call, name, argv, said):
    assert re.search(said, call.refusal(name, *argv))


@pytest.mark.slow
def test_the_judge_is_trained_once_on_all_real_images(call, monkeypatch):
    started = []

    def run(self, command, run, *, is_shown):
        started.append(run.config)
        shutil.copy(call.judge, finish(run, 0.9).folder / "model.safetensors")
        return 0

    monkeypatch.setattr(Launches, "run", run)
    small = ("--images=4", "--strengths=1", "run.epochs=1", "data.examples_per_class=2")
    call("drift", *small)
    (trained,) = started
    assert trained.data.examples_per_class is None
    assert not trained.mixing.is_synthetic
    call("drift", *small, "method.gamma=0.5")
    assert len(started) == 1
    call("drift", *small, "optim.lr=0.1")
    assert [config.optim.lr for config in started] == [trained.optim.lr, 0.1]
