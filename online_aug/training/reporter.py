"""What a rank's run says of itself: the live panel, a record an epoch, the summary."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from online_aug.classifier.evaluation import Evaluation
from online_aug.config.loading import config_digest
from online_aug.console import open_console
from online_aug.distributed.world import World, total
from online_aug.experiment.experiment import Experiment
from online_aug.loader.loader import OnlineAugLoader
from online_aug.loader.pool import open_store
from online_aug.reporting.gallery import draw_run_gallery
from online_aug.reporting.html_report import write_report
from online_aug.reporting.live import GeneratorView, LiveReport, print_summary
from online_aug.reporting.metrics import EpochMetrics, MetricsLog, Summary
from online_aug.reporting.run_directory import write_summary
from online_aug.request import Counts
from online_aug.training.build_loader import who_makes
from online_aug.training.run_state import EpochTally, RunState

_CACHE_EVERY_S = 1.0


class TrainingReport:
    """Shows and records; changes nothing of the training."""

    def __init__(
        self, experiment: Experiment, loader: OnlineAugLoader, world: World, directory: Path
    ) -> None:
        """Show nothing yet; the first rank alone shows and writes."""
        self._experiment, self._loader, self._world = experiment, loader, world
        self._directory = directory
        self._store = open_store(experiment.config, experiment.splits.train)
        self._log: MetricsLog | None = None
        self._cache_seen_s, self._cache_stats = float("-inf"), dict[str, Any]()
        self.live = LiveReport(
            experiment.config.run.epochs, len(loader), world.is_first, ranks=world.world_size
        )

    def begin(self, epoch: int) -> None:
        """Open the log for the epochs from this one on."""
        if self._world.is_first:
            self._log = MetricsLog(self._directory, from_epoch=epoch)
        if self._loader.process and self._world.nodes > 1:
            self.live.message(f"{self._world.nodes} nodes, {who_makes(self._experiment.config)}")

    def close(self) -> None:
        """Close log and cache."""
        if self._log:
            self._log.close()
        self._store.close()

    def counted(self, state: RunState) -> RunState:
        """The state with what this launch's generation process has done so far."""
        process = self._loader.process
        if process is None:
            return state
        return replace(
            state,
            generated=state.generated + process.status.generated,
            rejected=state.rejected + process.status.rejected,
            restarts=state.restarts + process.restarts,
        )

    def over_nodes(self, state: RunState) -> RunState:
        """The state with what the generation processes of all nodes did; called by all ranks."""
        made, rejected, restarts = total(
            self._world, [state.generated, state.rejected, state.restarts]
        )
        return replace(state, generated=int(made), rejected=int(rejected), restarts=int(restarts))

    def over_ranks(self, served: Counts) -> Counts:
        """What all ranks served; called by all."""
        counts = total(self._world, list(vars(served).values()))
        return Counts(**{name: int(n) for name, n in zip(vars(served), counts, strict=True)})

    def step(self, epoch: int, loss: Any, tally: EpochTally) -> None:
        """Show where training is, after every step."""
        ratio = self._loader.samples_per_insert
        self.live.step(epoch, self._loader.step, loss, tally.served, self._view(ratio))

    def epoch(
        self, now: RunState, found: Evaluation, tally: EpochTally, served: Counts, **reached: Any
    ) -> None:
        """Log and show a finished epoch; on the first rank.

        Args:
            now: Counted.
            found: On the validation split.
            tally: Of this rank.
            served: By all ranks in this epoch.
            reached: `epoch`, `step`, `train_loss`, `lr` and `images_per_s`.
        """
        process, cache = self._loader.process, self._store.stats()
        metrics = EpochMetrics(
            val_top1=found.top1,
            val_top5=found.top5,
            val_worst_group=found.worst_group,
            loader_wait_s=tally.wait_s,
            served_real=served.real,
            served_fresh=served.fresh,
            served_cached=served.cached,
            starved=served.starved,
            samples_per_insert=self._loader.samples_per_insert,
            generated=now.generated - now.reported[0],
            generated_per_s=process.status.images_per_s if process else 0.0,
            rejected=now.rejected - now.reported[1],
            cache_entries=cache["entries"],
            cache_bytes=cache["payload_bytes"],
            **reached,
        )
        assert self._log  # the first rank's, and only it found something to report
        self._log.append(metrics)
        self.live.epoch(metrics)

    def finish(
        self, now: RunState, last: Evaluation, best: Evaluation, totals: Counts, reused: int
    ) -> None:
        """Write summary, report and gallery, and print the summary; on the first rank.

        Args:
            now: Counted, `wall_s` of all launches.
            last: On the test split after the last epoch.
            best: After the epoch that was best on the validation split.
            totals: Counts by all ranks.
            reused: Images asked for that the cache already held.
        """
        summary = Summary(
            top1=last.top1,
            top1_best_val=best.top1,
            best_val_epoch=now.best_epoch,
            per_class=last.per_class,
            top5=last.top5,
            per_group=last.per_group,
            worst_group=last.worst_group,
            per_shots=last.per_shots,
            epochs=self._experiment.config.run.epochs,
            wall_s=now.wall_s,
            first_step_s=float(now.first_step_s or 0.0),
            served_real=totals.real,
            served_fresh=totals.fresh,
            served_cached=totals.cached,
            starved=totals.starved,
            samples_per_insert=self._loader.samples_per_insert,
            generated=now.generated,
            rejected=now.rejected,
            reused=reused,
            generator_restarts=now.restarts,
            config_digest=config_digest(self._experiment.config),
        )
        gallery = self._directory / "gallery.png"
        draw_run_gallery(self._experiment, self._loader.plan, self._store, gallery)
        write_report(self._directory, summary, gallery)
        write_summary(self._directory, summary)
        self.live.__exit__(None, None, None)
        print_summary(summary, self._directory, open_console())

    def _view(self, samples_per_insert: float) -> GeneratorView | None:
        """What the live table says of the generation process; the cache is asked once a second."""
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
            cache_entries=self._cache_stats["entries"],
            cache_bytes=self._cache_stats["payload_bytes"],
            samples_per_insert=samples_per_insert,
        )
