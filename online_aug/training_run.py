"""One rank's run from its first epoch to its summary."""

import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from safetensors.torch import load_file
from torch import nn

from online_aug.config_files import config_digest
from online_aug.dataloader.generator_process import StopWaiting
from online_aug.dataloader.loader import OnlineAugLoader
from online_aug.errors import UserError
from online_aug.pictures import draw_run_gallery
from online_aug.publishing import SaliencyPublisher
from online_aug.recipe import Recipe
from online_aug.records import Batch, Served
from online_aug.reporting.live import GeneratorView, LiveReport, print_summary
from online_aug.reporting.metrics import EpochMetrics, MetricsLog, Summary
from online_aug.reporting.report import write_report
from online_aug.reporting.run_directory import write_summary
from online_aug.reporting.terminal import open_console
from online_aug.run_state import EpochTally, RunState
from online_aug.stores import open_store
from online_aug.training.distributed import World, agree, barrier, total
from online_aug.training.engine import TrainingEngine
from online_aug.training.evaluation import Evaluation, evaluate
from online_aug.training.interrupts import Interrupt


class TrainingRun:
    """The steps of a run in order; `train.py` calls them."""

    def __init__(
        self,
        recipe: Recipe,
        classifier: nn.Module,
        loader: OnlineAugLoader,
        world: World,
        directory: Path,
    ) -> None:
        """Take the built classifier and start the clock of `first_step_s`."""
        self._built = time.monotonic()
        self._recipe, self._config, self._world = recipe, recipe.config, world
        self._loader, self._directory = loader, directory
        self._store = open_store(recipe.config)
        self._publisher = SaliencyPublisher(recipe, loader, world, directory)
        self._steps_per_epoch = len(loader)
        self._engine = TrainingEngine(
            classifier, recipe.config, world, steps_per_epoch=self._steps_per_epoch
        )
        self._state, self._tally = RunState(), EpochTally()
        self._log: MetricsLog | None = None
        self._cache_seen_s, self._cache_stats = float("-inf"), dict[str, Any]()
        self._live = LiveReport(
            recipe.config.run.epochs,
            self._steps_per_epoch,
            world.is_first,
            ranks=world.world_size,
        )
        self.first_epoch = 0

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.__exit__(kind, error, trace)
        if self._log:
            self._log.close()
        self._store.close()

    def resume(self) -> None:
        """Go on from the newest checkpoint where there is one."""
        saved = self._engine.load(self._directory / "checkpoints")
        if saved is not None:
            self._state = RunState(**saved["run"])
            self._tally = EpochTally.resumed(saved["tally"])
            self.first_epoch = saved["epoch"]
            self._publisher.resume(self.first_epoch)
            self._loader.load_state_dict(saved["loader"])
            self._live.message(f"resumed at epoch {self.first_epoch + 1}, step {self._loader.step}")
        if self._world.is_first:
            self._log = MetricsLog(self._directory, from_epoch=self.first_epoch)

    def train_epoch(self, epoch: int, interrupt: Interrupt) -> int:
        """Train the rest of an epoch; the signal that ended it early, after a checkpoint, or 0.

        Raises:
            UserError: If no batch can be made any more: an image that cannot be read, a generation
                process that gave up. A run of one rank has then written a checkpoint.
        """
        self._publisher.refresh(epoch, self._engine.evaluated_model())
        self._loader.set_epoch(epoch)
        self._tally.started = time.monotonic()
        try:
            for batch in self._timed(self._loader):
                self._step(epoch, batch)
                if received := agree(self._world, interrupt.received or 0):
                    return self._stop(epoch, received)
        except StopWaiting:
            return self._stop(epoch, interrupt.received or 0)
        except UserError:
            if self._world.world_size == 1:  # the other ranks do not know and train on
                self.checkpoint(epoch)
            raise
        return 0

    def validate(self, epoch: int) -> None:
        """Evaluate on the validation split, report the epoch, keep the best weights."""
        rate = self._tally.images * self._world.world_size / self._tally.train_s
        found = self._evaluate(self._recipe.splits.val)
        if found and found.top1 > self._state.best_top1:
            self._state.best_top1, self._state.best_epoch = found.top1, epoch
            self._engine.export(self._best_weights)
        served = self._over_ranks(self._tally.served)
        if found:
            self._report(epoch, found, served, rate)
        self._loader.set_epoch(epoch + 1)
        self._tally = EpochTally()
        if self._is_checkpoint_due(epoch):
            self.checkpoint(epoch + 1)

    def checkpoint(self, epoch: int) -> None:
        """Save everything a restart needs; all ranks call it.

        Args:
            epoch: The one to go on with.
        """
        state = replace(
            self._state,
            wall_s=self._state.wall_s + time.monotonic() - self._built,
            generated=self._generated,
            rejected=self._rejected,
            restarts=self._restarts,
        )
        content = {
            "epoch": epoch,
            "run": asdict(state),
            "tally": self._tally.state_dict(),
            "loader": self._loader.state_dict(),
        }
        self._engine.save(self._directory / "checkpoints", content)

    def finish(self) -> None:
        """Test, export, and write summary and gallery."""
        last = self._evaluate(self._recipe.splits.test)
        totals = self._over_ranks(self._loader.totals)
        reused = self._loader.reused()
        flags = total(self._world, [float(n in reused) for n in range(len(self._loader.plan))])
        if last is None:
            return
        self._engine.export(self._directory / "model.safetensors")
        best = self._test_best()
        summary = Summary(
            top1=last.top1,
            top1_best_val=best.top1,
            best_val_epoch=self._state.best_epoch,
            per_class=last.per_class,
            epochs=self._config.run.epochs,
            wall_s=self._state.wall_s + time.monotonic() - self._built,
            first_step_s=float(self._state.first_step_s or 0.0),
            served_real=totals.real,
            served_fresh=totals.fresh,
            served_cached=totals.cached,
            starved=totals.starved,
            generated=self._generated,
            rejected=self._rejected,
            reused=sum(flag > 0 for flag in flags),
            generator_restarts=self._restarts,
            config_digest=config_digest(self._config),
        )
        gallery = self._directory / "gallery.png"
        draw_run_gallery(self._recipe, self._loader.plan, self._store, gallery)
        write_report(self._directory, summary, gallery)
        write_summary(self._directory, summary)
        self._live.__exit__(None, None, None)
        print_summary(summary, self._directory, open_console())

    @property
    def _best_weights(self) -> Path:
        return self._directory / "best.safetensors"

    @property
    def _generated(self) -> int:
        process = self._loader.process
        return self._state.generated + (process.status.generated if process else 0)

    @property
    def _rejected(self) -> int:
        process = self._loader.process
        return self._state.rejected + (process.status.rejected if process else 0)

    @property
    def _restarts(self) -> int:
        process = self._loader.process
        return self._state.restarts + (process.restarts if process else 0)

    def _stop(self, epoch: int, received: int) -> int:
        """Leave the epoch with a checkpoint; the signal that asked for it."""
        self.checkpoint(epoch)
        self._live.message("interrupted: checkpoint written, the same command goes on")
        return received

    def _step(self, epoch: int, batch: Batch) -> None:
        tally = self._tally
        loss = self._engine.train_step(batch)
        tally.add(loss, batch.served)
        if self._state.first_step_s is None:
            self._state.first_step_s = time.monotonic() - self._built
        self._live.step(epoch, self._loader.step, loss, tally.served, self._view())

    def _timed(self, loader: OnlineAugLoader) -> Iterator[Batch]:
        """The loader's batches, with the time it took to get them added up."""
        batches = iter(loader)
        while True:
            asked = time.monotonic()
            batch = next(batches, None)
            self._tally.wait_s += time.monotonic() - asked
            if batch is None:
                return
            yield batch

    def _evaluate(self, images: Any) -> Evaluation | None:
        """On the first rank, while the others wait; None on them."""
        found = None
        if self._world.is_first:
            model = self._engine.evaluated_model()
            found = evaluate(model, images, self._config.data, self._world.device)
        barrier(self._world)
        return found

    def _test_best(self) -> Evaluation:
        """Test accuracy of the weights that were best on the validation split."""
        model = self._engine.evaluated_model()
        last = {name: value.clone() for name, value in model.state_dict().items()}
        model.load_state_dict(load_file(self._best_weights))
        found = evaluate(model, self._recipe.splits.test, self._config.data, self._world.device)
        model.load_state_dict(last)
        return found

    def _report(self, epoch: int, found: Evaluation, served: Served, images_per_s: float) -> None:
        tally, process = self._tally, self._loader.process
        cache = self._store.stats()
        before, made = self._state.reported, (self._generated, self._rejected)
        self._state.reported = made
        metrics = EpochMetrics(
            epoch=epoch,
            step=self._engine.step,
            train_loss=tally.mean_loss,
            val_top1=found.top1,
            lr=self._engine.lr,
            images_per_s=images_per_s,
            loader_wait_s=tally.wait_s,
            served_real=served.real,
            served_fresh=served.fresh,
            served_cached=served.cached,
            starved=served.starved,
            generated=made[0] - before[0],
            generated_per_s=process.status.images_per_s if process else 0.0,
            rejected=made[1] - before[1],
            cache_entries=cache["entries"],
            cache_bytes=cache["payload_bytes"],
        )
        assert self._log  # the first rank's, and only it found something to report
        self._log.append(metrics)
        self._live.epoch(metrics)

    def _over_ranks(self, served: Served) -> Served:
        counts = total(self._world, list(vars(served).values()))
        return Served(**{name: int(n) for name, n in zip(vars(served), counts, strict=True)})

    def _view(self) -> GeneratorView | None:
        """What the live table says of the generation process; the cache is asked once a second."""
        process = self._loader.process
        if process is None:
            return None
        now = time.monotonic()
        if now - self._cache_seen_s > 1.0:
            self._cache_stats, self._cache_seen_s = self._store.stats(), now
        status = process.status
        return GeneratorView(
            state=status.state,
            images_per_s=status.images_per_s,
            generated=status.generated,
            cache_entries=self._cache_stats["entries"],
            cache_bytes=self._cache_stats["payload_bytes"],
        )

    def _is_checkpoint_due(self, epoch: int) -> bool:
        every = self._config.run.checkpoint_epochs
        return (epoch + 1) % every == 0 or epoch + 1 == self._config.run.epochs
