"""The comparison of methods: its intervals, its table, and which runs it takes for finished."""

import math
from dataclasses import replace

import pytest
from run_records import epoch, summary

from benchmarks import accuracy
from benchmarks._paired import Estimate, difference, estimate
from online_aug.config.loading import resolved_yaml
from online_aug.errors import UserError
from online_aug.files import to_json
from online_aug.reporting.metrics import MetricsLog


def test_the_interval_is_students_t_over_the_seeds():
    found = estimate([0.90, 0.92, 0.94])
    # t(0.975, 2) = 4.3027, standard deviation 0.02
    assert found.mean == pytest.approx(0.92)
    assert found.half_width == pytest.approx(4.3027 * 0.02 / math.sqrt(3), rel=1e-4)
    assert found.text() == "92.0 ± 5.0"


def test_one_seed_has_a_mean_and_no_interval():
    assert estimate([0.5]).text() == "50.0"
    assert estimate([]).text() == "-"


def test_a_difference_is_of_the_seeds_that_both_have():
    found = difference({0: 0.9, 1: 0.8, 2: 0.1}, {0: 0.8, 1: 0.7, 3: 0.0})
    assert found.seeds == 2
    assert found.mean == pytest.approx(0.1)
    assert found.half_width == pytest.approx(0, abs=1e-9)
    assert Estimate(0.05, 0.01, 3).text(signed=True) == "+5.0 ± 1.0"


def finished(tmp_path, row, seed, top1, steps=10):
    overrides = (*accuracy.ROWS[row], f"run.seed={seed}")
    run = accuracy.Run(row, seed, "quickstart", overrides, tmp_path / f"{row}-{seed}")
    run.folder.mkdir()
    log = MetricsLog(run.folder, from_epoch=0)
    log.append(epoch(0, step=steps))
    log.close()
    (run.folder / "config.yaml").write_text(resolved_yaml(run.config))
    (run.folder / "summary.json").write_text(to_json(replace(summary(), top1=top1)))
    return run


def test_the_table_says_how_many_seeds_each_row_has(tmp_path):
    runs = [finished(tmp_path, "vanilla", seed, 0.5 + seed / 10) for seed in range(2)]
    runs.append(finished(tmp_path, "recipe", 1, 0.75))
    lines = accuracy.table(runs, ["vanilla", "recipe"]).splitlines()
    assert lines[0] == "| method | seeds | test, % | test - vanilla |"
    assert lines[2] == "| vanilla | 2 | 55.0 ± 63.5 |  |"
    assert lines[3] == "| recipe | 1 | 75.0 | +15.0 |"
    assert lines[-1] == "10 optimizer steps in each run"


def test_runs_of_unequal_length_are_not_compared(tmp_path):
    runs = [finished(tmp_path, "vanilla", 0, 0.5), finished(tmp_path, "recipe", 0, 0.6, steps=20)]
    with pytest.raises(UserError, match=r"equal optimizer steps, got \[10, 20\]"):
        accuracy.table(runs, ["vanilla", "recipe"])


def test_a_run_of_other_settings_is_not_taken_for_this_one(tmp_path):
    run = finished(tmp_path, "vanilla", 0, 0.5)
    assert run.is_finished
    other = accuracy.Run("vanilla", 0, "quickstart", (*run.overrides, "optim.lr=0.1"), run.folder)
    with pytest.raises(UserError, match=r"has another optim\.lr$"):
        assert other.is_finished


def test_how_images_are_made_does_not_matter_to_a_run_without_any(tmp_path):
    run = finished(tmp_path, "vanilla", 0, 0.5)
    keys = (*run.overrides, "method.strength=0.1")
    assert accuracy.Run("vanilla", 0, "quickstart", keys, run.folder).is_finished
    run = finished(tmp_path, "recipe", 0, 0.5)
    keys = (*run.overrides, "method.strength=0.1")
    with pytest.raises(UserError, match=r"has another method\.strength$"):
        assert accuracy.Run("recipe", 0, "quickstart", keys, run.folder).is_finished


def test_a_row_of_ones_own_may_begin_with_one_that_has_a_name():
    found = accuracy._own_rows([["weak", "sgd_mix", "method.strength=0.1"]])
    assert found == {"weak": ("method.name=sgd_mix", "method.strength=0.1")}


def test_overrides_may_follow_the_methods():
    options = accuracy._options(["--methods", "vanilla", "paste", "optim.lr=0.1"])
    assert (options.methods, options.overrides) == (["vanilla", "paste"], ["optim.lr=0.1"])
    with pytest.raises(UserError, match="got pasta"):
        accuracy._options(["--methods", "pasta"])
