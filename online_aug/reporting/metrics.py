"""The figures of a run: one record an epoch, one at the end."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from online_aug.files import from_json, to_json, write_atomically
from online_aug.request import Counts

METRICS_FILE = "metrics.jsonl"

TENSORBOARD_TAGS = {
    "train_loss": "train/loss",
    "lr": "train/lr",
    "images_per_s": "train/images_per_s",
    "loader_wait_s": "train/loader_wait_s",
    "val_top1": "val/top1",
    "val_top5": "val/top5",
    "val_worst_group": "val/worst_group",
    "served_real": "served/real",
    "served_fresh": "served/fresh",
    "served_cached": "served/cached",
    "starved": "served/starved",
    "samples_per_insert": "served/samples_per_insert",
    "generated": "generator/generated",
    "generated_per_s": "generator/images_per_s",
    "rejected": "generator/rejected",
    "cache_entries": "cache/entries",
    "cache_bytes": "cache/bytes",
}


@dataclass(frozen=True, kw_only=True)
class EpochMetrics:
    """One line of `metrics.jsonl`; counts are of this epoch over all ranks."""

    epoch: int
    """From 0."""
    step: int
    """Optimizer steps since the start of the run."""
    train_loss: float
    """Mean over the epoch."""
    val_top1: float
    """Share of the validation split recognised, [0, 1]."""
    val_top5: float
    """Share of it whose class is among the five likeliest, [0, 1]."""
    val_worst_group: float | None
    """Share recognised of the group that is recognised least; null without groups."""
    lr: float
    """Learning rate of the last step."""
    images_per_s: float
    """Trained on, all ranks together."""
    loader_wait_s: float
    """Time the first rank waited for a batch."""
    served_real: int
    served_fresh: int
    served_cached: int
    starved: int
    """Slots planned synthetic that got the real image; not counted in `served_real`."""
    samples_per_insert: float
    """Times a generated image was served on average since the start of the run."""
    generated: int
    """Images made during this epoch."""
    generated_per_s: float
    rejected: int
    """Images made and refused by the gate during this epoch."""
    cache_entries: int
    """Images in the cache at the end of the epoch, whoever made them."""
    cache_bytes: int

    @property
    def served(self) -> Counts:
        """How the slots of this epoch were filled, over all ranks."""
        return Counts(
            real=self.served_real,
            fresh=self.served_fresh,
            cached=self.served_cached,
            starved=self.starved,
        )


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What `summary.json` says about a finished run; counts are of the whole run, all ranks."""

    top1: float
    """Share of the test split recognised after the last epoch, [0, 1]."""
    top1_best_val: float
    """The same after the epoch that was best on the validation split."""
    best_val_epoch: int
    """From 0."""
    per_class: Mapping[str, float]
    """Accuracy of each class on the test split after the last epoch, by class name."""
    top5: float
    """Share of the test split whose class is among the five likeliest after the last epoch."""
    per_group: Mapping[str, float] = field(default_factory=dict)
    """Accuracy of each group of the test split, by name; empty where it comes without."""
    worst_group: float | None = None
    """The smallest of these; null without groups."""
    per_shots: Mapping[str, float] = field(default_factory=dict)
    """Long tail: accuracy on classes with few, medium and many training images."""
    epochs: int
    wall_s: float
    first_step_s: float
    """From the classifier being built to the end of the first optimizer step."""
    served_real: int
    served_fresh: int
    served_cached: int
    starved: int
    samples_per_insert: float
    """Times a generated image was served on average."""
    generated: int
    """Images this run made; what was in the making when a launch was stopped is not counted."""
    rejected: int = 0
    """Images the method refused to make, or that did not pass the gate."""
    reused: int
    """Images this run asked for that the cache already held."""
    generator_restarts: int
    config_digest: str

    @property
    def parts(self) -> dict[str, Mapping[str, float]]:
        """Accuracy by other parts of the test split than its classes, under the parts' name."""
        found = {"groups": self.per_group, "training images": self.per_shots}
        return {title: shares for title, shares in found.items() if shares}

    @property
    def made_text(self) -> str:
        """Images made, reused and rejected, in words."""
        tried = self.generated + self.rejected
        share = f" ({self.rejected / tried:.1%})" if self.rejected else ""
        return f"{self.generated:,} made, {self.reused:,} reused, {self.rejected:,} rejected{share}"

    @property
    def served(self) -> Counts:
        """How the slots of the run were filled, over all ranks."""
        return Counts(
            real=self.served_real,
            fresh=self.served_fresh,
            cached=self.served_cached,
            starved=self.starved,
        )


class MetricsLog:
    """`metrics.jsonl` and TensorBoard events of a run directory; for the first rank only."""

    def __init__(self, folder: Path, *, from_epoch: int) -> None:
        """Keep what was logged before `from_epoch` (the epoch about to run) and drop the rest."""
        self._folder = folder
        kept = [line for line in _logged(folder) if line.epoch < from_epoch]
        write_atomically(folder / METRICS_FILE, "".join(to_json(line) + "\n" for line in kept))
        self._file = (folder / METRICS_FILE).open("a", encoding="utf-8")
        self._first_step = kept[-1].step + 1 if kept else 0
        self._events: Any = None

    def append(self, metrics: EpochMetrics) -> None:
        """Log one epoch; it is in the file when this returns."""
        self._file.write(to_json(metrics) + "\n")
        self._file.flush()
        events = self._open_events()
        values = asdict(metrics)
        for name, tag in TENSORBOARD_TAGS.items():
            if values[name] is not None:
                events.add_scalar(tag, values[name], metrics.step)
        events.flush()

    def close(self) -> None:
        """Close both logs; they stay readable."""
        self._file.close()
        if self._events is not None:
            self._events.close()

    def _open_events(self) -> Any:
        if self._events is None:
            # Seconds to import: after the first epoch, not before the first step.
            from torch.utils.tensorboard import SummaryWriter

            # TensorBoard hides what an earlier launch logged from this step on.
            folder = str(self._folder / "tensorboard")
            self._events = SummaryWriter(folder, purge_step=self._first_step)
        return self._events


def read_metrics(folder: Path) -> list[EpochMetrics]:
    """The epochs logged in a run directory, in order.

    A last line without its newline was cut by a crash and is left out.

    Raises:
        FileNotFoundError: If there is no log.
        UserError: If a line is no record of this version.
    """
    path = folder / METRICS_FILE
    whole, _, _ = path.read_text(encoding="utf-8").rpartition("\n")
    lines = whole.split("\n") if whole else []
    return [from_json(EpochMetrics, line, f"{path} line {n}") for n, line in enumerate(lines, 1)]


def _logged(folder: Path) -> list[EpochMetrics]:
    return read_metrics(folder) if (folder / METRICS_FILE).exists() else []
