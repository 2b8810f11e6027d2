"""Records of an invented run."""

from dataclasses import replace

from online_aug.reporting.metrics import EpochMetrics, Summary


def epoch(number: int, **changes: float) -> EpochMetrics:
    metrics = EpochMetrics(
        epoch=number,
        step=10 * (number + 1),
        train_loss=1.5,
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


def summary(epochs: int = 3) -> Summary:
    return Summary(
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
