"""`report.html`: one run on one page that loads nothing from elsewhere."""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from online_aug.console import duration
from online_aug.files import write_atomically
from online_aug.reporting.metrics import EpochMetrics, Summary, read_metrics
from online_aug.reporting.refusals import refusal_warning
from online_aug.reporting.run_directory import CONFIG_FILE
from online_aug.reporting.tables import filled

REPORT_FILE = "report.html"
_WIDTH, _HEIGHT, _MARGIN = 420, 180, 36
_COLOURS = ("#1f77b4", "#2ca02c", "#ff7f0e", "#d62728", "#9467bd")
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 960px; margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; } td, th { padding: .2em .8em .2em 0; text-align: left; }
figure { display: inline-block; margin: 0 1.5em 1em 0; } figcaption { font-weight: 600; }
img { max-width: 100%; } pre { background: #f5f5f5; padding: 1em; overflow-x: auto; }
.key { display: inline-block; width: .8em; height: .8em; margin: 0 .3em 0 1em; }
"""
Curves = dict[str, list[float]]


def write_report(directory: Path, summary: Summary, gallery: Path) -> None:
    """Write the page of a finished run from its metrics, configuration and gallery, if any."""
    metrics = read_metrics(directory)
    parts = [
        f"<h1>{escape(directory.name)}</h1>",
        _summary_table(summary),
        "<h2>Epochs</h2>",
        *(_figure(title, curves) for title, curves in _charts(metrics).items()),
        "<h2>Accuracy of each class</h2>",
        _shares_table(summary.per_class),
        *(
            f"<h2>Accuracy by {escape(title)}</h2>{_shares_table(shares)}"
            for title, shares in summary.parts.items()
        ),
    ]
    if gallery.exists():
        data = base64.b64encode(gallery.read_bytes()).decode()
        parts += ["<h2>Synthetic images</h2>", f'<img src="data:image/png;base64,{data}" alt="">']
    config = escape((directory / CONFIG_FILE).read_text())
    parts += ["<h2>Configuration</h2>", f"<pre>{config}</pre>"]
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(directory.name)}'
        f"</title><style>{_STYLE}</style><body>{''.join(parts)}</body></html>\n"
    )
    write_atomically(directory / REPORT_FILE, page)


def _summary_table(summary: Summary) -> str:
    served = filled(summary.served)
    refused = [("not composed", summary.refusals_text)] if summary.refusals else []
    if warning := refusal_warning(summary.refused_shares):
        refused.append(("refused", warning))
    return _table(
        [
            ("test top1, last epoch", f"{summary.top1:.1%}"),
            (
                "test top1, best validation epoch",
                f"{summary.top1_best_val:.1%} (epoch {summary.best_val_epoch + 1})",
            ),
            ("test top5, last epoch", f"{summary.top5:.1%}"),
            *_worst_group(summary),
            (f"served {', '.join(served)}", ", ".join(f"{count:,}" for count in served.values())),
            *refused,
            ("images generated", summary.made_text),
            ("restarts of the generator", str(summary.generator_restarts)),
            ("first step after", f"{summary.first_step_s:.1f} s"),
            ("whole run", f"{duration(summary.wall_s)}, {summary.epochs} epochs"),
        ]
    )


def _worst_group(summary: Summary) -> list[tuple[str, str]]:
    worst = summary.worst_group
    return [] if worst is None else [("test worst group, last epoch", f"{worst:.1%}")]


def _shares_table(shares: Mapping[str, float]) -> str:
    return _table([(name, f"{share:.1%}") for name, share in shares.items()])


def _table(rows: Sequence[tuple[str, str]]) -> str:
    cells = "".join(f"<tr><th>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in rows)
    return f"<table>{cells}</table>"


def _charts(metrics: Sequence[EpochMetrics]) -> dict[str, Curves]:
    return {
        "training loss": {"loss": [m.train_loss for m in metrics]},
        "validation top1": {"top1": [m.val_top1 for m in metrics]},
        "served slots": {
            "real": [float(m.served_real) for m in metrics],
            "fresh": [float(m.served_fresh) for m in metrics],
            "cached": [float(m.served_cached) for m in metrics],
            "starved": [float(m.starved) for m in metrics],
            "composed": [float(m.served_composed) for m in metrics],
        },
        "images in the cache": {"entries": [float(m.cache_entries) for m in metrics]},
    }


def _figure(title: str, curves: Curves) -> str:
    values = [value for curve in curves.values() for value in curve if value == value]
    if not values:
        return ""
    low, high = min(0.0, min(values)), max(values)
    lines = "".join(
        f'<polyline fill="none" stroke-width="2" stroke="{colour}" '
        f'points="{_points(curve, low, high)}"/>'
        for curve, colour in zip(curves.values(), _COLOURS, strict=False)
    )
    keys = "".join(
        f'<span class="key" style="background:{colour}"></span>{escape(name)}'
        for name, colour in zip(curves, _COLOURS, strict=False)
        if len(curves) > 1
    )
    bottom = _HEIGHT - _MARGIN
    return (
        f'<figure><figcaption>{escape(title)}{keys}</figcaption><svg width="{_WIDTH}" '
        f'height="{_HEIGHT}" font-size="11"><line x1="{_MARGIN}" x2="{_WIDTH}" y1="{bottom}" '
        f'y2="{bottom}" stroke="#999"/>{lines}<text x="0" y="12">{high:.3g}</text>'
        f'<text x="0" y="{bottom}">{low:.3g}</text></svg></figure>'
    )


def _points(curve: Sequence[float], low: float, high: float) -> str:
    across = (_WIDTH - _MARGIN - 4) / max(1, len(curve) - 1)
    up = (_HEIGHT - _MARGIN - 8) / ((high - low) or 1.0)
    return " ".join(
        f"{_MARGIN + n * across:.1f},{_HEIGHT - _MARGIN - (value - low) * up:.1f}"
        for n, value in enumerate(curve)
        if value == value
    )
