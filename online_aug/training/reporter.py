"""The report of a rank on its run: the live panel, a record for each epoch, the summary."""

import math
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from jaxtyping import Float
from torch import Tensor

from cache import Rejection
from online_aug.classifier.evaluation import Evaluation
from online_aug.config import Config
from online_aug.config.loading import config_digest
from online_aug.console import duration, open_console
from online_aug.distributed.world import World
from online_aug.experiment.experiment import Experiment
from online_aug.experiment.images import ComposedSamples
from online_aug.loader.back_pressure import GeneratorProcess, GeneratorStatus
from online_aug.loader.loader import OnlineAugLoader
from online_aug.loader.pool import open_store
from online_aug.planning.held import rejected_of
from online_aug.reporting.class_results import draw_confusion, write_results
from online_aug.reporting.gallery import draw_run_gallery
from online_aug.reporting.html_report import write_report
from online_aug.reporting.live import GeneratorView, LiveReport, print_summary
from online_aug.reporting.metrics import (
    EpochMetrics,
    MetricsLog,
    Summary,
    scalars,
)
from online_aug.reporting.publication.model_card import CardContent, write_model_card
from online_aug.reporting.refusals import refusal_warning, refused_shares
from online_aug.reporting.run_directory import write_summary
from online_aug.reporting.samples import Judge, choose_samples, write_samples
from online_aug.reporting.tables import BOTH, COMPOSED, GENERATED
from online_aug.reporting.trackers.tracking import Trackers, start_trackers
from online_aug.request import Counts, Servable
from online_aug.training.describe_run import who_makes

_CACHE_EVERY_S = 1.0
_PAGE_EVERY_S = 10.0


def _columns_of(config: Config) -> tuple[str, ...]:
    if not config.is_composed:
        return GENERATED
    return BOTH if config.is_planned else COMPOSED


def forecast(generator: GeneratorStatus, left_s: float | None) -> str:
    """Return a line on how many images will be made, as far as the first epoch tells.

    Args:
        generator: The state of the generation processes of this node.
        left_s: Time that the rest of training takes; None if it is not known.
    """
    said = f"generator: {generator.state}, {generator.generated:,} images made so far"
    if left_s is None or generator.state in ("finished", "full"):
        return said
    if not generator.images_per_s:
        return f"{said}; {duration(left_s)} of training left"
    more = round(generator.images_per_s * left_s)
    return f"{said}, at most {more:,} more in the {duration(left_s)} left of training"


@dataclass(frozen=True)
class GeneratorTotals:
    """Figures that the generation processes of this node have told since they first started."""

    rejections: Counter[str] = field(default_factory=Counter)
    generating_s: float = 0.0
    paused_s: float = 0.0

    @classmethod
    def of(cls, process: GeneratorProcess | None) -> Self:
        """Return the totals so far; nothing without a process."""
        if process is None:
            return cls()
        status = process.status
        return cls(Counter(status.rejected_by_reason), status.generating_s, status.paused_s)


@dataclass(kw_only=True)
class EpochTally:
    """Sums over the epoch in progress, on one rank."""

    loss: Float[Tensor, ""] | float = 0.0
    """Sum over the steps."""
    steps: int = 0
    """Steps that were not skipped for a loss or gradient that is not finite."""
    skipped: int = 0
    """Steps that were, or that overflowed float16."""
    wait_s: float = 0.0
    """Time spent waiting for batches."""
    earlier_s: float = 0.0
    """Training time of this epoch in earlier launches."""
    started: float = field(default_factory=time.monotonic)

    @property
    def train_s(self) -> float:
        """Training time so far."""
        return self.earlier_s + time.monotonic() - self.started

    @property
    def mean_loss(self) -> float:
        """Mean over the steps, 0 if there was none; waits for the device."""
        return float(self.loss) / max(1, self.steps)

    def add(self, loss: Float[Tensor, ""]) -> None:
        """Count one step."""
        self.loss = self.loss + loss
        self.steps += 1

    def state_dict(self) -> dict[str, Any]:
        """Return the sums as plain numbers, for a checkpoint in the middle of the epoch."""
        return {
            "loss": float(self.loss),
            "steps": self.steps,
            "skipped": self.skipped,
            "wait_s": self.wait_s,
            "earlier_s": self.train_s,
        }


class TrainingReport:
    """Shows and records a run; changes nothing of the training."""

    def __init__(
        self, experiment: Experiment, loader: OnlineAugLoader, world: World, directory: Path
    ) -> None:
        """Show nothing yet; only the first rank shows and writes."""
        self._experiment, self._loader, self._world = experiment, loader, world
        self._directory = directory
        self._store = open_store(experiment.config, experiment.splits.train)
        self._log: MetricsLog | None = None
        self._trackers: Trackers | None = None
        self._has_forecast = False
        self._cache_seen_s, self._cache_stats = float("-inf"), dict[str, Any]()
        self._requests_seen, self._refused, self._has_warned = 0, dict[str, float](), False
        self._generator_before = GeneratorTotals()
        self._page_s = float("-inf")
        self.live = LiveReport(
            experiment.config.run.epochs,
            len(loader),
            world.is_first,
            ranks=world.world_size,
            columns=_columns_of(experiment.config),
        )

    def begin(self, epoch: int) -> None:
        """Open log and trackers for this epoch and later ones.

        Raises:
            UserError: If a tracker cannot be opened.
        """
        if self._world.is_first:
            self._log = MetricsLog(self._directory, from_epoch=epoch)
            self._trackers = start_trackers(
                self._experiment.config.run.trackers,
                self._directory,
                self._log.first_step,
                self.live.message,
            )
            self._look_for_refusals()
        if self._loader.process and self._world.nodes > 1:
            self.live.message(f"{self._world.nodes} nodes, {who_makes(self._experiment.config)}")
        if self._world.is_first and self._experiment.config.is_composed:
            self.live.message(ComposedSamples.of(self._experiment).describe_refusals())

    def _look_for_refusals(self) -> None:
        """Find out how much of the newest plan is refused, and say once if it is most of it."""
        newest = self._loader.plan[self._requests_seen :]
        if not newest:
            return
        self._requests_seen += len(newest)
        self._refused = refused_shares(self._experiment, newest)
        warning = refusal_warning(self._refused)
        if warning is not None and not self._has_warned:
            self._has_warned = True
            self.live.message(f"warning: {warning}")

    def close(self) -> None:
        """Close log, trackers and cache."""
        if self._log:
            self._log.close()
        if self._trackers:
            self._trackers.close()
        self._store.close()

    def step(self, epoch: int, loss: Any, counts: Counts) -> None:
        """Show where training is; call it after every step.

        Args:
            epoch: Number of the epoch, from 0.
            loss: Loss of the step.
            counts: This rank's counts of the epoch.
        """
        self.live.step(epoch, self._loader.step, loss, counts, self._generator_view())

    def _generator_view(self) -> GeneratorView | None:
        process = self._loader.process
        if process is None:
            return None
        now_s = time.monotonic()
        if now_s - self._cache_seen_s > _CACHE_EVERY_S:
            self._cache_stats, self._cache_seen_s = self._store.stats(), now_s
        status = process.status
        return GeneratorView(
            state=status.state,
            images_per_s=status.images_per_s,
            generated=status.generated,
            to_come=self._to_come(status),
            refused_shares=self._refused,
            cache_entries=self._cache_stats["entries"],
            cache_bytes=self._cache_stats["payload_bytes"],
            samples_per_insert=self._loader.samples_per_insert,
        )

    def _to_come(self, generator: GeneratorStatus) -> int:
        """Return how many images of this node's part of the plan are not made yet."""
        config, world = self._experiment.config, self._world
        if generator.state in ("finished", "full") or self._experiment.saliency.follows_classifier:
            return 0  # nothing more, or the plan changes epoch by epoch
        parts = world.nodes if config.mixing.starvation == "substitute" else 1
        planned = len(self._loader.plan) / parts
        refused = max(planned * sum(self._refused.values()), generator.rejected)
        return max(0, round(planned - refused) - self._loader.inserts)

    def epoch(self, found: Evaluation | None, counts: Counts, **reached: Any) -> None:
        """Log and show a finished epoch; called by the first rank.

        Args:
            found: Result on the validation split; None if there is no such split.
            counts: Counts of this epoch, over all ranks.
            reached: `epoch`, `step`, `train_loss`, `skipped`, `lr`, `images_per_s`,
                `loader_wait_s`, `val_s`.
        """
        process, cache = self._loader.process, self._store.stats()
        before, now = self._generator_before, GeneratorTotals.of(process)
        self._generator_before = now
        metrics = EpochMetrics(
            val_top1=found.top1 if found else math.nan,
            val_top5=found.top5 if found else math.nan,
            val_worst_group=found.worst_group if found else None,
            samples_per_insert=self._loader.samples_per_insert,
            generated_per_s=process.status.images_per_s if process else 0.0,
            rejected=counts.rejected,
            rejections=dict(now.rejections - before.rejections),
            generating_s=now.generating_s - before.generating_s,
            paused_s=now.paused_s - before.paused_s,
            cache_entries=cache["entries"],
            cache_bytes=cache["payload_bytes"],
            **counts.by_metric,
            **reached,
        )
        self._look_for_refusals()
        assert self._log  # opened on the first rank, which alone evaluates
        assert self._trackers
        self._log.append(metrics)
        self._trackers.log(scalars(metrics) | {"ahead": self._log.ahead}, metrics.step)
        self.live.epoch(metrics)
        if time.monotonic() - self._page_s > _PAGE_EVERY_S:
            write_report(self._directory)
            self._page_s = time.monotonic()
        if process and not self._has_forecast:
            self._has_forecast = True
            self.live.message(forecast(process.status, self.live.left_s))

    def finish(
        self,
        counts: Counts,
        last: Evaluation,
        best: tuple[int, Evaluation] | None,
        judge: Judge,
        **reached: Any,
    ) -> None:
        """Write report, gallery and summary, and print the summary; called by the first rank.

        Args:
            counts: Counts of the run, over all ranks.
            last: Result on the test split after the last epoch.
            best: The epoch that was best on the validation split, and the same after it; None if
                there is no such split.
            judge: The classifier after the last epoch.
            reached: `wall_s`, `first_step_s`, `first_fresh_s`, `skipped`, `reused`, `most_served`
                and `refusals`.
        """
        plan, gallery = self._loader.plan, self._directory / "gallery.png"
        rejected = {plan[number]: why for number, why in rejected_of(self._store, plan).items()}
        summary = self._summary(counts, last, best, rejected, **reached)
        draw_run_gallery(self._experiment, plan, self._store, gallery)
        assert self._log  # opened on the first rank, which alone finishes
        assert self._trackers
        names = self._experiment.splits.train.class_names
        self._trackers.log_end(
            gallery, draw_confusion(names, last.confusion), summary, self._log.last_step
        )
        samples = choose_samples(
            self._experiment, self._store, self._loader.served(), rejected, judge
        )
        write_samples(self._directory, samples)
        write_report(self._directory, summary=summary, evaluation=last)
        write_results(self._directory, last)
        write_model_card(
            self._directory,
            CardContent(
                name=self._directory.name,
                config=self._experiment.config,
                splits=self._experiment.splits,
                summary=summary,
                evaluation=last,
            ),
        )
        write_summary(self._directory, summary)
        self.live.__exit__(None, None, None)
        print_summary(summary, self._directory, open_console())

    def _summary(
        self,
        counts: Counts,
        last: Evaluation,
        best: tuple[int, Evaluation] | None,
        rejected: Mapping[Servable, Rejection],
        **reached: Any,
    ) -> Summary:
        return Summary(
            top1=last.top1,
            top1_best_val=best[1].top1 if best else None,
            best_val_epoch=best[0] if best else None,
            per_class=last.per_class,
            top5=last.top5,
            per_group=last.per_group,
            worst_group=last.worst_group,
            per_shots=last.per_shots,
            epochs=self._experiment.config.run.epochs,
            samples_per_insert=self._loader.samples_per_insert,
            rejected=max(counts.rejected, len(rejected)),  # some before this run
            rejections=dict(Counter(each.reason for each in rejected.values())),
            refused_shares=self._refused,
            generator_restarts=counts.restarts,
            config_digest=config_digest(self._experiment.config),
            **counts.by_metric,
            **reached,
        )
