"""One row or line for every epoch that is over."""

from rich.text import Text

from online_aug.reporting.metrics import EpochMetrics
from online_aug.reporting.panel import MIX_COLOURS, mix_text
from online_aug.reporting.wording import byte_size, percent, rate, shares, whole_percent

WIDTHS = {
    "epoch": 7, "loss": 7, "val top1": 9, "images/s": 9, "real": 6, "fresh": 6, "cached": 7,
    "starved": 8, "made": 6, "made/s": 7, "cache": 8,
}  # fmt: skip
"""Columns and their widths in characters, 80 in all."""


def epoch_heads() -> Text:
    """The heads of the columns of `epoch_row`."""
    heads = Text(no_wrap=True, overflow="crop", style="bold")
    for name, width in WIDTHS.items():
        heads.append(f"{name:>{width}}", MIX_COLOURS.get(name))
    return heads


def epoch_row(metrics: EpochMetrics, total_epochs: int, *, is_best: bool) -> Text:
    """One epoch as a row of fixed columns; the best validation so far stands out."""
    styles = {**MIX_COLOURS, "val top1": "bold green" if is_best else ""}
    row = Text(no_wrap=True, overflow="crop")
    for name, value in _cells(metrics, total_epochs).items():
        row.append(f"{value:>{WIDTHS[name]}}", styles.get(name))
    return row


def epoch_line(metrics: EpochMetrics, total_epochs: int) -> str:
    """One epoch as a line that explains itself, for logs."""
    cells = _cells(metrics, total_epochs)
    return (
        f"epoch {cells['epoch']}: loss {cells['loss']}, val top1 {cells['val top1']}, "
        f"{cells['images/s']} images/s, {mix_text(metrics.served).plain}, "
        f"generator {cells['made']} made, {cells['made/s']} images/s, "
        f"cache {metrics.cache_entries:,} images, {cells['cache']}"
    )


def _cells(metrics: EpochMetrics, total_epochs: int) -> dict[str, str]:
    mix = {name: whole_percent(share) for name, share in shares(metrics.served).items()}
    return {
        "epoch": f"{metrics.epoch + 1}/{total_epochs}",
        "loss": f"{metrics.train_loss:.3f}",
        "val top1": percent(metrics.val_top1),
        "images/s": rate(metrics.images_per_s),
        **mix,
        "made": f"{metrics.generated:,}",
        "made/s": rate(metrics.generated_per_s),
        "cache": byte_size(metrics.cache_bytes),
    }
