"""The studies that train: labels, reuse and overhead, and the judge of others."""

import csv
import re

import pytest

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
