"""The table of a comparison."""

import json

import pytest
from comparison_samples import VANILLA, finish, make_run
from rich.console import Console

from online_aug.comparison.tables import as_records, compare, draw, markdown, turned
from online_aug.errors import UserError


@pytest.fixture
def rows(tmp_path):
    """Two seeds of a vanilla row, one of another."""
    runs = [make_run(tmp_path, "vanilla", seed, VANILLA) for seed in (0, 1)]
    vanilla = {run.seed: finish(run, 0.5 + run.seed / 10).outcome() for run in runs}
    costs = {"generated": 2, "most_served": 2, "served_cached": 9, "starved": 1}
    made = finish(make_run(tmp_path, "mixed", 1), 0.75, **costs)
    return {"vanilla": vanilla, "mixed": {1: made.outcome()}}


def test_means_have_intervals_and_differences_are_paired(rows):
    lines = markdown(compare(rows)).splitlines()
    assert lines[0].startswith("| method | seeds | test, % | test - vanilla | images made |")
    assert lines[2].startswith("| vanilla | 2 | 55.0 ± 63.5 |  | - |")
    assert lines[3].startswith("| mixed | 1 | 75.0 | +15.0 | 2 |")


def test_what_images_cost_is_told_of_rows_that_have_some(rows):
    columns = compare(rows)
    assert columns["an image served at most"] == ["-", "2 times"]
    assert columns["slots starved"] == ["-", "5.0 %"]
    assert columns["time a run"] == ["12 s", "12 s"]


def test_rows_without_images_have_no_columns_for_them(rows):
    assert "images made" not in compare({"vanilla": rows["vanilla"]})


def test_groups_have_columns_if_the_data_has_groups(tmp_path):
    run = make_run(tmp_path, "vanilla", 0, VANILLA)
    found = {0: finish(run, 0.5, worst_group=0.25, per_shots={"few": 0.1}).outcome()}
    columns = compare({"vanilla": found, "other": {}})
    assert columns["worst group, %"] == ["25.0", "-"]
    assert columns["few, %"] == ["10.0", "-"]
    assert columns["worst group - vanilla"] == ["", "-"]


def test_runs_of_unequal_length_are_not_compared(tmp_path):
    short = finish(make_run(tmp_path, "vanilla", 0, VANILLA), 0.5)
    long = finish(make_run(tmp_path, "mixed", 0), 0.5, steps=10)
    with pytest.raises(UserError, match=r"equal optimizer steps, got \[5, 10\]"):
        compare({"vanilla": {0: short.outcome()}, "mixed": {0: long.outcome()}})


def test_a_terminal_shows_a_column_for_each_row(rows):
    console = Console(width=80)
    with console.capture() as shown:
        console.print(draw(turned(compare(rows))))
    lines = shown.get().splitlines()
    assert [word in lines[1] for word in ("method", "vanilla", "mixed")] == [True] * 3
    (test,) = [line for line in lines if "test, %" in line]
    assert "55.0 ± 63.5" in test
    assert "75.0" in test


def test_every_run_is_in_the_record(rows):
    found = json.loads(json.dumps(as_records(rows)))
    assert found["vanilla"]["1"]["test"] == pytest.approx(0.6)
    assert found["mixed"]["1"]["most_served"] == 2
