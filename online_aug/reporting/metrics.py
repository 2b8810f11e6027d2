"""The figures of a run: one record for each epoch, and one summary at the end."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from online_aug.console import percent
from online_aug.documents import DocumentError, read_text
from online_aug.errors import UserError
from online_aug.files import from_json, to_json, write_atomically
from online_aug.request import Counts

METRICS_FILE = "metrics.jsonl"
_MAX_LOG_BYTES = 256 * 2**20
"""About a quarter of a million epochs."""

SLOT_KINDS = ("real", "fresh", "cached", "composed", "starved")
"""How a slot can be filled, as `Counts` names it."""

TENSORBOARD_TAGS = {
    "train_loss": "train/loss",
    "skipped": "train/skipped",
    "lr": "train/lr",
    "images_per_s": "train/images_per_s",
    "loader_wait_s": "train/loader_wait_s",
    "val_s": "val/seconds",
    "val_top1": "val/top1",
    "val_top5": "val/top5",
    "val_worst_group": "val/worst_group",
    "served_real": "served/real",
    "served_fresh": "served/fresh",
    "served_cached": "served/cached",
    "served_composed": "served/composed",
    "starved": "served/starved",
    "samples_per_insert": "served/samples_per_insert",
    "generated": "generator/generated",
    "generated_per_s": "generator/images_per_s",
    "rejected": "generator/rejected",
    "rejections": "generator/rejected_for",
    "generating_s": "generator/generating_s",
    "paused_s": "generator/paused_s",
    "cache_entries": "cache/entries",
    "cache_bytes": "cache/bytes",
    "ahead": "generator/ahead",
}
"""Tags by which TensorBoard groups the figures; other trackers have the names themselves."""
AXES = ("epoch", "step")
"""Figures that the others are drawn over."""

_TOP = 5


@dataclass(frozen=True, kw_only=True)
class EpochMetrics:
    """One line of `metrics.jsonl`; counts are those of this epoch over all ranks."""

    epoch: int
    """The epoch, from 0."""
    step: int
    """Number of optimizer steps since the start of the run."""
    train_loss: float
    """Mean training loss over the epoch."""
    skipped: int
    """Number of optimizer steps that changed nothing, since a loss or gradient was not finite."""
    val_top1: float
    """Accuracy on the validation split, [0, 1]; null if there is no such split."""
    val_top5: float
    """Share of the validation split whose class is among the five likeliest, likewise."""
    val_worst_group: float | None
    """Accuracy on the group with the lowest one; null without groups."""
    lr: float
    """Learning rate of the last step."""
    images_per_s: float
    """Number of images trained on in a second, over all ranks."""
    loader_wait_s: float
    """Seconds that the first rank waited for batches."""
    val_s: float
    """Seconds that the evaluation on the validation split took."""
    served_real: int
    served_fresh: int
    served_cached: int
    served_composed: int
    """Number of slots with training images that were composed without a generator."""
    starved: int
    """Number of slots planned synthetic that got the real image; not part of `served_real`."""
    samples_per_insert: float
    """How often a generated image was served on average since the start of the run."""
    generated: int
    """Number of images made during this epoch."""
    generated_per_s: float
    rejected: int
    """Number of images that the gate refused during this epoch."""
    rejections: Mapping[str, int]
    """The same by reason, of the first rank's node."""
    generating_s: float
    """Seconds that the generation processes of the first rank's node generated, all together."""
    paused_s: float
    """Seconds that back-pressure let them wait for training, all together."""
    cache_entries: int
    """Number of images in the cache at the end of the epoch, including those of other runs."""
    cache_bytes: int

    @property
    def ahead(self) -> int:
        """How many more images were made than served for the first time, in this epoch."""
        return self.generated - self.served_fresh

    @property
    def served(self) -> Counts:
        """How the slots of this epoch were filled."""
        return Counts(
            real=self.served_real,
            fresh=self.served_fresh,
            cached=self.served_cached,
            composed=self.served_composed,
            starved=self.starved,
        )


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The content of `summary.json`; counts are those of the whole run over all ranks."""

    top1: float
    """Accuracy on the test split after the last epoch, [0, 1]."""
    top1_best_val: float | None
    """Accuracy on the test split after the epoch that was best on the validation split; null if
    there is no such split, so that the last epoch alone counts."""
    best_val_epoch: int | None
    """The epoch that was best on the validation split, from 0; null likewise."""
    per_class: Mapping[str, float]
    """Accuracy of each class on the test split after the last epoch, by class name."""
    top5: float
    """Share of the test split whose class is among the five likeliest after the last epoch."""
    per_group: Mapping[str, float] = field(default_factory=dict)
    """Accuracy of each group of the test split, by name; empty without groups."""
    worst_group: float | None = None
    """The lowest accuracy of a group; null without groups."""
    per_shots: Mapping[str, float] = field(default_factory=dict)
    """Accuracy on classes with few, medium and many training images; empty without a long tail."""
    epochs: int
    wall_s: float
    """Seconds of all launches, with what each did before it trained, such as fine-tuning."""
    first_step_s: float
    """Seconds from building the classifier to the end of the first optimizer step."""
    skipped: int = 0
    """Number of optimizer steps that changed nothing, since a loss or gradient was not finite."""
    first_fresh_s: float | None = None
    """Seconds from building the classifier to the first batch with a fresh image, on the rank that
    had one first and in the launch that served it; null if none was served."""
    served_real: int
    served_fresh: int
    served_cached: int
    served_composed: int
    starved: int
    refusals: Mapping[str, int] = field(default_factory=dict)
    """How often nothing could be composed for a slot, by reason; part of `starved`."""
    samples_per_insert: float
    """How often a generated image was served on average."""
    most_served: int = 0
    """How often the image was served that was served most."""
    generated: int
    """Number of images that this run made; unfinished ones of a stopped launch do not count."""
    rejected: int = 0
    """Number of images of the plan that a method refused to make or that did not pass the gate, in
    this run or before it."""
    rejections: Mapping[str, int] = field(default_factory=dict)
    """The same by reason."""
    refused_shares: Mapping[str, float] = field(default_factory=dict)
    """Share of the newest plan that its methods refuse to make, by reason."""
    reused: int
    """Number of images of the plan that the cache already held."""
    generator_restarts: int
    config_digest: str

    @property
    def best_on_validation(self) -> str | None:
        """Accuracy and number of the epoch that was best on validation, in words."""
        if self.top1_best_val is None or self.best_val_epoch is None:
            return None
        return f"{percent(self.top1_best_val)} (epoch {self.best_val_epoch + 1})"

    @property
    def told_top5(self) -> str | None:
        """Share of images whose class is among the five likeliest, or None if that says nothing."""
        return percent(self.top5) if len(self.per_class) > _TOP else None

    @property
    def parts(self) -> dict[str, Mapping[str, float]]:
        """Accuracies by groups and by number of training images, as far as there are any."""
        found = {"groups": self.per_group, "training images": self.per_shots}
        return {title: shares for title, shares in found.items() if shares}

    @property
    def made(self) -> int:
        """Number of images that were made, reused or rejected."""
        return self.generated + self.reused + self.rejected

    @property
    def refusals_text(self) -> str:
        """How often nothing could be composed and why, in words, the commonest reason first."""
        ordered = sorted(self.refusals.items(), key=lambda entry: -entry[1])
        return ", ".join(f"{count:,} {reason}" for reason, count in ordered)

    @property
    def made_text(self) -> str:
        """The number of images made, reused and rejected, in words."""
        share = f" ({self.rejected / self.made:.1%})" if self.rejected else ""
        return f"{self.generated:,} made, {self.reused:,} reused, {self.rejected:,} rejected{share}"

    @property
    def served(self) -> Counts:
        """How the slots of the whole run were filled."""
        return Counts(
            real=self.served_real,
            fresh=self.served_fresh,
            cached=self.served_cached,
            composed=self.served_composed,
            starved=self.starved,
        )


class MetricsLog:
    """The writer of `metrics.jsonl`; for the first rank only."""

    def __init__(self, folder: Path, *, from_epoch: int) -> None:
        """Open the log of a run and drop the epochs from `from_epoch` on, which runs next."""
        kept = [line for line in _logged(folder) if line.epoch < from_epoch]
        write_atomically(folder / METRICS_FILE, "".join(to_json(line) + "\n" for line in kept))
        self._file = (folder / METRICS_FILE).open("a", encoding="utf-8")
        self.first_step = kept[-1].step + 1 if kept else 0
        """The first optimizer step that is logged from now on."""
        self.last_step = max(0, self.first_step - 1)
        """The last one that was logged."""
        self.ahead = sum(line.ahead for line in kept)
        """How many more images were made than served for the first time, in the whole run."""

    def append(self, metrics: EpochMetrics) -> None:
        """Log one epoch and flush it."""
        self._file.write(to_json(metrics) + "\n")
        self._file.flush()
        self.ahead, self.last_step = self.ahead + metrics.ahead, metrics.step

    def close(self) -> None:
        """Close the log."""
        self._file.close()


def scalars(metrics: EpochMetrics) -> dict[str, float]:
    """Return the figures of an epoch by name, those by reason and the shares of the slots too."""
    values = asdict(metrics)
    reasons = {f"rejections/{why}": count for why, count in values.pop("rejections").items()}
    served, slots = metrics.served, max(1, metrics.served.slots)
    shares = {f"share/{kind}": getattr(served, kind) / slots for kind in SLOT_KINDS}
    return _known({name: v for name, v in values.items() if name not in AXES}) | reasons | shares


def summary_scalars(summary: Summary) -> dict[str, float]:
    """Return the single figures of a summary, such as `summary/top1`."""
    return {f"summary/{name}": value for name, value in _known(asdict(summary)).items()}


def _known(values: Mapping[str, Any]) -> dict[str, float]:
    """Keep the single figures that were measured."""
    return {
        name: value
        for name, value in values.items()
        if isinstance(value, (int, float)) and math.isfinite(value)
    }


def read_metrics(folder: Path) -> list[EpochMetrics]:
    """Read the logged epochs of a run directory, in order.

    A last line without a newline was cut by a crash and is left out.

    Raises:
        FileNotFoundError: If there is no log.
        UserError: If a line is not a record of this version.
    """
    path = folder / METRICS_FILE
    if not path.exists():
        raise FileNotFoundError(path)
    try:
        whole, _, _ = read_text(path, limit=_MAX_LOG_BYTES).rpartition("\n")
    except DocumentError as error:
        raise UserError(f"{path} must be the log of a run: {error}") from None
    lines = whole.split("\n") if whole else []
    return [from_json(EpochMetrics, line, f"{path} line {n}") for n, line in enumerate(lines, 1)]


def _logged(folder: Path) -> list[EpochMetrics]:
    return read_metrics(folder) if (folder / METRICS_FILE).exists() else []
