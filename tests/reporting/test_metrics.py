import json
import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from run_records import epoch, summary

from online_aug.errors import UserError
from online_aug.reporting.metrics import (
    SLOT_KINDS,
    TENSORBOARD_TAGS,
    EpochMetrics,
    MetricsLog,
    Summary,
    read_metrics,
    scalars,
    summary_scalars,
)
from online_aug.request import Counts


def log(folder: Path, numbers: range, *, from_epoch: int) -> None:
    metrics = MetricsLog(folder, from_epoch=from_epoch)
    for number in numbers:
        metrics.append(epoch(number))
    metrics.close()


def test_what_was_logged_is_read_back(tmp_path: Path) -> None:
    log(tmp_path, range(3), from_epoch=0)
    assert read_metrics(tmp_path) == [epoch(0), epoch(1), epoch(2)]


def test_an_epoch_is_in_the_file_when_append_returns(tmp_path: Path) -> None:
    metrics = MetricsLog(tmp_path, from_epoch=0)
    metrics.append(epoch(0))
    assert read_metrics(tmp_path) == [epoch(0)]
    metrics.close()


def test_a_resumed_log_drops_the_epochs_that_are_run_again(tmp_path: Path) -> None:
    log(tmp_path, range(4), from_epoch=0)
    log(tmp_path, range(2, 3), from_epoch=2)
    assert [line.epoch for line in read_metrics(tmp_path)] == [0, 1, 2]


def test_every_figure_but_the_axes_is_a_scalar_by_its_name() -> None:
    found = scalars(epoch(0, val_worst_group=0.5))
    figures = {field.name for field in fields(EpochMetrics)} - {"epoch", "step", "rejections"}
    assert figures <= set(found)
    assert set(found) - figures == {"rejections/off-class", *(f"share/{k}" for k in SLOT_KINDS)}
    assert found["share/cached"] == pytest.approx(0.15)


def test_a_figure_that_is_not_known_is_no_scalar() -> None:
    assert {"val_worst_group", "train_loss"}.isdisjoint(scalars(epoch(0, train_loss=math.nan)))


def test_tensorboard_has_a_tag_for_every_figure_but_the_axes() -> None:
    names = {field.name for field in fields(EpochMetrics)} | {"ahead"}
    assert set(TENSORBOARD_TAGS) == names - {"epoch", "step"}


def test_the_log_knows_its_steps_and_how_far_generation_is_ahead(tmp_path: Path) -> None:
    log(tmp_path, range(4), from_epoch=0)
    resumed = MetricsLog(tmp_path, from_epoch=2)
    assert (resumed.first_step, resumed.last_step, resumed.ahead) == (21, 20, 20)
    resumed.append(epoch(2))
    assert (resumed.first_step, resumed.last_step, resumed.ahead) == (21, 30, 30)
    resumed.close()


def test_a_summary_gives_its_single_figures() -> None:
    found = summary_scalars(summary(top1=0.5, worst_group=None))
    assert found["summary/top1"] == 0.5
    assert all(isinstance(value, (int, float)) for value in found.values())
    assert {"summary/worst_group", "summary/per_class"}.isdisjoint(found)


def test_a_last_line_cut_by_a_crash_is_left_out(tmp_path: Path) -> None:
    log(tmp_path, range(2), from_epoch=0)
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text()[:-20])
    assert [line.epoch for line in read_metrics(tmp_path)] == [0]


def test_a_log_cut_by_a_crash_can_be_resumed(tmp_path: Path) -> None:
    log(tmp_path, range(2), from_epoch=0)
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text()[:-20])
    log(tmp_path, range(1, 2), from_epoch=1)
    assert [line.epoch for line in read_metrics(tmp_path)] == [0, 1]


def test_a_loss_that_diverged_is_valid_json_and_read_back_as_nan(tmp_path: Path) -> None:
    metrics = MetricsLog(tmp_path, from_epoch=0)
    metrics.append(epoch(0, train_loss=math.nan))
    metrics.close()
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["train_loss"] is None
    assert math.isnan(read_metrics(tmp_path)[0].train_loss)


@pytest.mark.parametrize("line", ["{", "[]", '{"epoch": 0}'])
def test_a_foreign_line_is_named_in_the_error(tmp_path: Path, line: str) -> None:
    (tmp_path / "metrics.jsonl").write_text(line + "\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl line 1 must "):
        read_metrics(tmp_path)


EPOCH_FIELDS = """epoch step train_loss skipped val_top1 val_top5 val_worst_group lr images_per_s
    loader_wait_s val_s served_real served_fresh served_cached served_composed starved
    samples_per_insert generated generated_per_s rejected rejections generating_s paused_s
    cache_entries cache_bytes"""
SUMMARY_FIELDS = """top1 top1_best_val best_val_epoch per_class top5 per_group worst_group
    per_shots epochs wall_s first_step_s skipped first_fresh_s served_real served_fresh
    served_cached served_composed starved refusals samples_per_insert most_served generated rejected
    rejections refused_shares reused generator_restarts config_digest"""


@pytest.mark.parametrize(
    ("record", "names"), [(EpochMetrics, EPOCH_FIELDS), (Summary, SUMMARY_FIELDS)]
)
def test_the_fields_are_those_scripts_rely_on(record: Any, names: str) -> None:
    assert [field.name for field in fields(record)] == names.split()


def test_an_epoch_says_how_its_slots_were_filled() -> None:
    assert epoch(0).served == Counts(real=60, fresh=20, cached=15, starved=5)


def test_the_five_likeliest_are_told_only_if_there_are_more_classes():
    assert summary().told_top5 is None
    assert summary(per_class={str(label): 0.5 for label in range(6)}).told_top5 == "99.0 %"
