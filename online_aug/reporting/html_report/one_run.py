"""The page of one run: what is special about it, how it went, what it learned, what it saw."""

import json
import math
from collections.abc import Iterator, Sequence
from itertools import accumulate

from cache.text import byte_size
from online_aug.console import duration, percent, rate, whole_percent
from online_aug.reporting.html_report.charts import (
    Layer,
    Line,
    layer_chart,
    line_chart,
)
from online_aug.reporting.html_report.classes import class_sections
from online_aug.reporting.html_report.page import (
    charts,
    folded,
    named_values,
    page,
    paragraph,
    parts_bar,
    preformatted,
    section,
    table,
    tiles,
)
from online_aug.reporting.html_report.recorded_run import RecordedRun
from online_aug.reporting.html_report.sample_cards import sample_sections
from online_aug.reporting.metrics import EpochMetrics
from online_aug.reporting.refusals import refusal_warning
from online_aug.reporting.tables import filled, shares
from online_aug.request import Counts


def one_run_page(run: RecordedRun) -> str:
    """Return the page of a run, finished or in training."""
    done = f"epoch {len(run.epochs)} of {run.length}"
    state = "finished" if run.summary else f"in training, {done}"
    return page(
        run.name,
        f"{method_of(run)} on {run.source}, seed {run.seed}, {state}",
        [
            tiles(_main_figures(run)),
            *(paragraph(text, "warning") for text in _warnings(run)),
            _settings(run),
            section("Training", charts(*_training(run.epochs))),
            _slots(run),
            section("Speed", charts(*_speed(run.epochs))),
            _generator(run),
            *class_sections(run),
            *sample_sections(run.samples),
            section("Where the time went", *_time(run)),
            section("Made with", *_environment(run)),
        ],
    )


def method_of(run: RecordedRun) -> str:
    """Name the method of a run, or say that it has none."""
    if run.is_vanilla:
        return "no synthetic images"
    several = run.settings.get("method")
    if isinstance(several, list):
        named = (each.get("name", "diff_mix") for each in several if isinstance(each, dict))
        return " and ".join(map(str, named))
    return str(run.settings.get("method.name", "diff_mix"))


def served_by(run: RecordedRun) -> Counts:
    """Return how the slots of all epochs were filled."""
    return sum((epoch.served for epoch in run.epochs), Counts())


def _main_figures(run: RecordedRun) -> dict[str, str]:
    served, summary = served_by(run), run.summary
    synthetic = served.synthetic
    judged = [epoch for epoch in run.epochs if math.isfinite(epoch.val_top1)]
    figures = {}
    if summary is not None:
        figures["test top-1, last epoch"] = percent(summary.top1)
        if summary.top1_best_val is not None and summary.best_val_epoch is not None:
            title = f"test top-1, best validation epoch ({summary.best_val_epoch + 1})"
            figures[title] = percent(summary.top1_best_val)
        if (top5 := summary.told_top5) is not None:
            figures["test top-5"] = top5
        if summary.worst_group is not None:
            figures["test worst group"] = percent(summary.worst_group)
    elif judged:
        best = max(judged, key=lambda epoch: epoch.val_top1)
        figures[f"best validation top-1 (epoch {best.epoch + 1})"] = percent(best.val_top1)
    if not run.is_vanilla:
        figures["of the slots synthetic"] = whole_percent(synthetic / max(1, served.slots))
        figures["images made in this run"] = f"{sum(e.generated for e in run.epochs):,}"
    if summary is not None:
        figures["whole run"] = duration(summary.wall_s)
    return figures


def _warnings(run: RecordedRun) -> Iterator[str]:
    summary, served = run.summary, served_by(run)
    if served.starved and not served.synthetic:
        yield (
            "No synthetic image was served: training was over before there was one. Make them "
            "first (online-aug fill), or wait for them (mixing.starvation=wait)."
        )
    if summary is not None and (warning := refusal_warning(summary.refused_shares)):
        yield f"{warning}."
    if skipped := sum(epoch.skipped for epoch in run.epochs):
        yield f"{skipped:,} optimizer steps were skipped: a loss or gradient was not finite."
    if summary is not None and summary.generator_restarts:
        yield f"The generation process was restarted {summary.generator_restarts} times."


def _settings(run: RecordedRun) -> str:
    about = "Keys whose values are not the defaults." if run.changed else "All are defaults."
    return section(
        "Settings",
        paragraph(about),
        named_values(
            {key: (value, f"default {usual}") for key, (value, usual) in run.changed.items()}
        ),
        folded("All settings", preformatted(run.config_text)),
    )


def _training(epochs: Sequence[EpochMetrics]) -> list[str]:
    x = numbers(epochs)
    loss = Line("loss", [each.train_loss for each in epochs])
    rates = line_chart("Learning rate", x, [Line("lr", [each.lr for each in epochs])])
    if not any(math.isfinite(each.val_top1) for each in epochs):  # nothing to validate on
        return [line_chart("Training loss", x, [loss]), rates]
    accuracy = [
        Line("top-1", [each.val_top1 for each in epochs]),
        Line("top-5", [each.val_top5 for each in epochs]),
    ]
    if any(each.val_worst_group is not None for each in epochs):
        worst = [each.val_worst_group for each in epochs]
        accuracy.append(Line("worst group", [float("nan") if v is None else v for v in worst]))
    return [
        line_chart("Training loss", x, [loss]),
        line_chart("Validation accuracy", x, accuracy, is_share=True),
        rates,
    ]


def numbers(epochs: Sequence[EpochMetrics]) -> list[float]:
    """Return the numbers of epochs, from 1."""
    return [float(each.epoch + 1) for each in epochs]


def _slots(run: RecordedRun) -> str:
    epochs, served = run.epochs, served_by(run)
    by_epoch = [shares(each.served) for each in epochs]
    if run.is_vanilla:
        return ""
    kinds = {kind: count for kind, count in filled(served).items() if count or kind == "real"}
    layers = [Layer(kind, [each.get(kind, 0.0) for each in by_epoch], kind) for kind in kinds]
    most = run.summary.most_served if run.summary else 0
    drawn = [layer_chart("Share of the slots", numbers(epochs), layers, is_share=True)]
    if served.fresh + served.cached:
        drawn.append(
            line_chart(
                "How often an image was served",
                numbers(epochs),
                [Line("times", [each.samples_per_insert for each in epochs])],
                note="Mean over the images there were to serve, since the start of the run."
                + (f" In the end one at most {most} times." if most else ""),
            )
        )
    rows = [
        (kind, f"{count:,}", percent(count / max(1, served.slots)), _KINDS[kind])
        for kind, count in kinds.items()
    ]
    heads = ("slot", "images", "share", "meaning")
    return section("What filled the batches", charts(*drawn), table(heads, rows, numbers=(1, 2)))


_KINDS = {
    "real": "training image",
    "fresh": "made in this run, served for the first time",
    "cached": "any other generated image",
    "composed": "training images, composed without a generator",
    "starved": "meant to be synthetic, but there was none to serve: the real image instead",
}


def _speed(epochs: Sequence[EpochMetrics]) -> Iterator[str]:
    x = numbers(epochs)
    yield line_chart(
        "Training, images/s", x, [Line("images/s", [each.images_per_s for each in epochs])]
    )
    if any(each.generated_per_s for each in epochs):
        yield line_chart(
            "Generation, images/s",
            x,
            [Line("images/s", [each.generated_per_s for each in epochs])],
            note="While it generates; pauses do not count.",
        )
    wait = [Line("seconds", [each.loader_wait_s for each in epochs])]
    yield line_chart("Training waited for batches, s", x, wait)


def _generator(run: RecordedRun) -> str:
    epochs = run.epochs
    reasons = rejections_of(run)
    made = sum(each.generated for each in epochs)
    if not made and not reasons:
        return ""
    x = numbers(epochs)
    # Below 0 for a moment if an image is served before its maker has said that it is made.
    ahead = [max(0.0, float(n)) for n in accumulate(each.ahead for each in epochs)]
    seconds = [
        Layer("generating", [each.generating_s for each in epochs], "c2"),
        Layer("paused by back-pressure", [each.paused_s for each in epochs], "c4"),
    ]
    limit = run.settings.get("generation.max_ahead")
    drawn = charts(
        line_chart(
            "Images ahead of training",
            x,
            [Line("images", ahead)],
            note=f"Made and not served yet; generation.max_ahead is {limit}.",
        ),
        layer_chart("Generation processes, s", x, seconds, is_share=False),
        line_chart(
            "Images in the cache", x, [Line("images", [float(e.cache_entries) for e in epochs])]
        ),
    )
    tried = made + sum(reasons.values())
    rows = [(why, f"{count:,}", percent(count / tried)) for why, count in reasons.items()]
    held, size = epochs[-1].cache_entries, byte_size(epochs[-1].cache_bytes)
    cache = f"In the cache after the last epoch: {held:,} images, {size}."
    told = f"{run.summary.made_text}. {cache}" if run.summary else cache
    heads = ("rejected because", "images", "of made and rejected")
    return section(
        "Generation and back-pressure", drawn, paragraph(told), table(heads, rows, numbers=(1, 2))
    )


def rejections_of(run: RecordedRun) -> dict[str, int]:
    """Return how many images were rejected for each reason, the commonest first."""
    found: dict[str, int] = {}
    if run.summary is not None and run.summary.rejections:
        found = dict(run.summary.rejections)
    else:
        for epoch in run.epochs:
            for why, count in epoch.rejections.items():
                found[why] = found.get(why, 0) + count
    return dict(sorted(found.items(), key=lambda entry: -entry[1]))


def _time(run: RecordedRun) -> list[str]:
    epochs, summary = run.epochs, run.summary
    trained = sum(e.served.slots / e.images_per_s for e in epochs if e.images_per_s)
    waited = sum(each.loader_wait_s for each in epochs)
    judged = sum(each.val_s for each in epochs)
    parts = {
        "training steps": (max(0.0, trained - waited), "c0"),
        "waiting for batches": (waited, "c1"),
        "validation": (judged, "c2"),
    }
    if summary is not None:
        rest = max(0.0, summary.wall_s - trained - judged)
        parts["everything else"] = (rest, "c7")
    whole = sum(amount for amount, _ in parts.values()) or 1.0
    rows = [(n, duration(amount), percent(amount / whole)) for n, (amount, _) in parts.items()]
    if summary is not None:
        rows.append(("whole run", duration(summary.wall_s), ""))
        rows.append(("until the first step", duration(summary.first_step_s), ""))
        if summary.first_fresh_s is not None:
            rows.append(("until the first fresh image", duration(summary.first_fresh_s), ""))
    generating, paused = (sum(getattr(e, f) for e in epochs) for f in ("generating_s", "paused_s"))
    if generating + paused:
        rows.append(("beside it, generating", duration(generating), ""))
        rows.append(("beside it, paused by back-pressure", duration(paused), ""))
    note = (
        "Everything else: loading, fine-tuning, maps, checkpoints, the test, pictures. The first "
        "step and image are timed from the building of the classifier; generating and paused are "
        "the sums over the generation processes of the first machine."
    )
    speed = f"Training ran at {rate(epochs[-1].images_per_s)} images/s in the last epoch."
    return [
        parts_bar(parts),
        table(("", "time", "share"), rows, numbers=(1, 2)),
        paragraph(f"{speed} {note if summary else ''}", "faint"),
    ]


def _environment(run: RecordedRun) -> list[str]:
    found = run.environment
    if not found:
        return []
    argv, gpus = found.get("argv"), found.get("gpus")
    rows = [
        ("command", " ".join(map(str, argv)) if isinstance(argv, list) else ""),
        ("code", str(found.get("git_revision") or "not a work tree")),
        ("Python", str(found.get("python", ""))),
        ("cores", str(found.get("cpus", ""))),
        ("GPUs", ", ".join(map(str, gpus)) if isinstance(gpus, list) and gpus else "none"),
        ("started", str(found.get("started", ""))),
    ]
    packages = json.dumps(found.get("packages", {}), indent=2)
    return [table(("", ""), rows), folded("Versions of packages", preformatted(packages))]
