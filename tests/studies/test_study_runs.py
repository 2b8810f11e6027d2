"""The studies of finished runs, and of what a run costs."""

import csv
import re
import shutil

import pytest

from online_aug.studies import robustness
from online_aug.studies.cost import Stage


@pytest.fixture
def run(call):
    """A directory as a finished run leaves it; its classifier has learned nothing."""
    folder = call.folder / "runs" / "first"
    folder.mkdir(parents=True)
    shutil.copy(call.folder / "recipe.yaml", folder / "config.yaml")
    shutil.copy(call.judge, folder / "model.safetensors")
    return folder


def table(call, name):
    with (call.out / f"{name}.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_runs_are_judged_clean_attacked_and_corrupted(call, run):
    call("robustness", f"--runs={run},{run}")
    first, second = table(call, "robustness")
    assert first == second
    assert first["run"] == "first"
    assert float(first["FGSM 8"]) <= float(first["clean"])
    assert set(robustness.CORRUPTIONS) < set(first)
    assert (call.out / "robustness_sheet.png").exists()


@pytest.mark.slow
def test_runs_of_several_seeds_are_averaged(call, run):
    runs = [run.with_name(f"first-seed{seed}") for seed in range(2)]
    for folder in runs:
        shutil.copytree(run, folder)
    text = call("robustness", f"--runs={run},{runs[0]},{runs[1]}")
    means = text.split("| run |")[1]
    assert re.findall(r"^\| (\S+) \| (\d) \|", means, re.MULTILINE) == [
        ("first", "1"),
        ("first", "2"),
    ]
    assert len(table(call, "robustness")) == 3


@pytest.mark.slow
def test_a_head_is_trained_on_each_run_s_features_and_on_those_of_the_start(call, run):
    call("transfer", f"--runs={run}", "--images=8")
    rows = table(call, "transfer")
    assert [row["run"] for row in rows] == ["first", "weights of the start"]
    assert all(0 <= float(row["recognised"]) <= 1 for row in rows)


@pytest.mark.slow
def test_the_cost_of_a_run_is_that_of_an_image_times_the_plan(call):
    text = call("cost", "--images=3")
    assert "**Extrapolated**" in text
    rows = {row["stage"]: row for row in table(call, "cost")}
    for name in ("reading and mixing", "encoding", "denoising", "decoding", "writing"):
        assert rows[name]["a run has"] == "16"
        assert float(rows[name]["measured, ms"]) > 0
    assert float(rows["writing"]["disk of one, bytes"]) > 0
    assert rows["training the classifier"]["a run has"] == str(2 * 2)


def test_the_time_of_a_stage_is_multiplied():
    assert Stage(name="writing", unit="image", seconds=0.5, items=30).total_s == 15


@pytest.mark.parametrize("name", ["robustness", "transfer"])
@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "--runs must name at least one finished run"),
        (["--runs=none"], "--runs must be directories of finished runs, none has no config.yaml"),
        (["--runs={run}", "--images=1"], "--images must be at least"),
    ],
)
def test_what_cannot_be_studied_is_refused_in_a_line(call, run, name, argv, said):
    argv = [word.format(run=run) for word in argv]
    assert re.search(said, call.refusal(name, *argv))


def test_the_cost_of_a_recipe_without_generated_images_is_refused(call):
    said = call.refusal("cost", "mixing.synthetic_probability=0")
    assert "method must be one whose images a generator makes" in said
