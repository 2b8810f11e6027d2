"""Records of an invented run."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from online_aug.classifier.evaluation import Evaluation
from online_aug.files import to_json
from online_aug.reporting.metrics import EpochMetrics, MetricsLog, Summary
from online_aug.reporting.run_directory import CONFIG_FILE, EVALUATION_FILE, write_summary
from online_aug.reporting.samples import Samples, write_samples


def epoch(number: int, **changes: float) -> EpochMetrics:
    metrics = EpochMetrics(
        epoch=number,
        step=10 * (number + 1),
        train_loss=1.5,
        skipped=0,
        val_top1=0.25,
        val_top5=0.75,
        val_worst_group=None,
        lr=0.1,
        images_per_s=100.0,
        loader_wait_s=0.5,
        val_s=0.2,
        served_real=60,
        served_fresh=20,
        served_cached=15,
        served_composed=0,
        starved=5,
        samples_per_insert=2.5,
        generated=30,
        generated_per_s=2.0,
        rejected=1,
        rejections={"off-class": 1},
        generating_s=12.0,
        paused_s=3.0,
        cache_entries=90,
        cache_bytes=4096,
    )
    return replace(metrics, **changes)


def summary(epochs: int = 3, **changes: Any) -> Summary:
    found = Summary(
        top1=0.9,
        top1_best_val=0.91,
        best_val_epoch=1,
        per_class={"null": 0.8, "Möwe": 1.0},
        top5=0.99,
        epochs=epochs,
        wall_s=12.5,
        first_step_s=0.5,
        served_real=70,
        served_fresh=20,
        served_cached=10,
        served_composed=0,
        starved=0,
        samples_per_insert=1.5,
        generated=20,
        reused=5,
        generator_restarts=0,
        config_digest="d1",
    )
    return replace(found, **changes)


def evaluation(confusion: Mapping[str, Mapping[str, int]]) -> Evaluation:
    right = {name: row.get(name, 0) / sum(row.values()) for name, row in confusion.items()}
    images = sum(sum(row.values()) for row in confusion.values())
    return Evaluation(
        top1=sum(row.get(name, 0) for name, row in confusion.items()) / images,
        top5=1.0,
        loss=0.5,
        per_class=right,
        per_group={},
        worst_group=None,
        per_shots={},
        confusion=confusion,
        images=images,
    )


CONFUSION = {"null": {"null": 8, "Möwe": 2}, "Möwe": {"Möwe": 10}}


def write_run(
    folder: Path,
    *,
    settings: Mapping[str, Any] = {},
    epochs: int = 3,
    changes: Mapping[str, Any] = {},
    end: Summary | None = None,
    samples: Samples | None = None,
) -> Path:
    """Write the files of an invented run; without `end` it is still in training.

    `settings` holds sections of the configuration, `changes` figures of every epoch.
    """
    folder.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {"run": {"seed": 0, "epochs": 3}, "data": {"source": "<digits>"}}
    content["mixing"] = {"synthetic_probability": 0.5}
    for section, values in settings.items():
        content[section] = {**content.get(section, {}), **values}
    (folder / CONFIG_FILE).write_text(yaml.safe_dump(content))
    log = MetricsLog(folder, from_epoch=0)
    for number in range(epochs):
        log.append(epoch(number, **changes))
    log.close()
    if end is not None:
        (folder / EVALUATION_FILE).write_text(to_json(evaluation(CONFUSION)))
        write_summary(folder, end)
    if samples is not None:
        write_samples(folder, samples)
    return folder
