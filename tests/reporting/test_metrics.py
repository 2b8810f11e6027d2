import json
import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_records import epoch, summary

from online_aug.errors import UserError
from online_aug.reporting.metrics import (
    TENSORBOARD_TAGS,
    EpochMetrics,
    MetricsLog,
    Summary,
    read_metrics,
)
from online_aug.request import Counts


def log(folder: Path, numbers: range, *, from_epoch: int) -> None:
    metrics = MetricsLog(folder, from_epoch=from_epoch)
    for number in numbers:
        metrics.append(epoch(number))
    metrics.close()


def logged_scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


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


def test_tensorboard_shows_each_step_once_after_a_resume(tmp_path: Path) -> None:
    log(tmp_path, range(4), from_epoch=0)
    log(tmp_path, range(2, 5), from_epoch=2)
    steps = [step for step, _ in logged_scalars(tmp_path, "val/top1")]
    assert steps == [10, 20, 30, 40, 50]


def test_tensorboard_knows_every_figure_but_the_axes() -> None:
    assert set(TENSORBOARD_TAGS) == {field.name for field in fields(EpochMetrics)} - {
        "epoch",
        "step",
    }


def test_tensorboard_shows_shares_rejections_and_how_far_generation_is_ahead(
    tmp_path: Path,
) -> None:
    log(tmp_path, range(2), from_epoch=0)
    log(tmp_path, range(2, 3), from_epoch=2)
    assert [value for _, value in logged_scalars(tmp_path, "share/cached")] == pytest.approx(
        [0.15] * 3
    )
    assert [value for _, value in logged_scalars(tmp_path, "generator/rejected_for/off-class")] == [
        1
    ] * 3
    assert [value for _, value in logged_scalars(tmp_path, "generator/ahead")] == [10, 20, 30]


def test_tensorboard_shows_pictures_at_the_last_step(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    metrics = MetricsLog(tmp_path, from_epoch=0)
    metrics.append(epoch(1))
    metrics.show("test/confusion", np.zeros((4, 4, 3), np.uint8))
    metrics.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Images("test/confusion")] == [20]


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
