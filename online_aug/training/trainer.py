"""One rank's run from its first epoch to its summary."""

import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from safetensors.torch import load_file
from torch import nn

from online_aug.classifier.evaluation import Evaluation, evaluate
from online_aug.data.image_sets import ImageSet
from online_aug.distributed.processes import Interrupt
from online_aug.distributed.world import World, agree, barrier, total
from online_aug.errors import UserError
from online_aug.experiment.experiment import Experiment
from online_aug.loader.dataset import Batch
from online_aug.loader.loader import OnlineAugLoader
from online_aug.loader.sampler import StopWaiting
from online_aug.training.checkpoints import FOLDER
from online_aug.training.engine import TrainingEngine
from online_aug.training.feedback import LossPublisher, SaliencyPublisher
from online_aug.training.reporter import TrainingReport
from online_aug.training.run_state import EpochTally, RunState, share_out


class TrainingRun:
    """The steps of a run in order; `train.py` calls them."""

    def __init__(
        self,
        experiment: Experiment,
        classifier: nn.Module,
        loader: OnlineAugLoader,
        world: World,
        directory: Path,
    ) -> None:
        """Take the built classifier and start the clock of `first_step_s`."""
        self._built = time.monotonic()
        self._experiment, self._config, self._world = experiment, experiment.config, world
        self._loader, self._directory = loader, directory
        self._publisher = SaliencyPublisher(experiment, loader, world, directory)
        self._engine = TrainingEngine(
            classifier, experiment.config, world, steps_per_epoch=len(loader)
        )
        self._losses = LossPublisher(experiment, loader, self._engine, world.device)
        self._state, self._tally = RunState(), EpochTally()
        self._report = TrainingReport(experiment, loader, world, directory)
        self.first_epoch = 0

    def __enter__(self) -> Self:
        self._report.live.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._report.live.__exit__(kind, error, trace)
        self._report.close()

    def resume(self) -> None:
        """Go on from the newest checkpoint where there is one."""
        saved = self._engine.load(self._directory / FOLDER, share_out)
        if saved is not None:
            self._state = RunState(**saved["run"])
            self._tally = EpochTally.resumed(saved["tally"])
            self.first_epoch = saved["epoch"]
            self._publisher.resume(self.first_epoch)
            self._loader.load_state_dict(saved["loader"])
            place = f"epoch {self.first_epoch + 1}, step {self._loader.step}"
            self._report.live.message(f"resumed at {place}")
        self._report.begin(self.first_epoch)

    def train_epoch(self, epoch: int, interrupt: Interrupt) -> int:
        """Train the rest of an epoch; the signal that ended it early, after a checkpoint, or 0.

        Raises:
            UserError: If no batch can be made any more: an image that cannot be read, a generation
                process that gave up. A run of one rank has then written a checkpoint.
        """
        self._engine.gather()
        self._publisher.refresh(epoch, self._engine.evaluated_model())
        self._loader.set_epoch(epoch)
        self._tally.started = time.monotonic()
        try:
            for batch in self._timed(self._loader):
                self._step(epoch, batch)
                if self._is_due_after(self._engine.step):
                    self.checkpoint(epoch)
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
        found = self._evaluate(self._experiment.splits.val)
        if found and found.top1 > self._state.best_top1:
            self._state.best_top1, self._state.best_epoch = found.top1, epoch
            self._engine.export(self._best_weights)
        served = self._report.over_ranks(self._tally.served)
        now = self._report.over_nodes(self._now())
        loss = total(self._world, [self._tally.mean_loss])[0] / self._world.world_size
        if found:
            self._report.epoch(
                now, found, self._tally, served,
                epoch=epoch, step=self._engine.step, train_loss=loss, lr=self._engine.lr,
                images_per_s=rate,
            )  # fmt: skip
            self._state.reported = (now.generated, now.rejected)
        self._loader.set_epoch(epoch + 1)
        self._tally = EpochTally()
        if self._is_checkpoint_due(epoch):
            self.checkpoint(epoch + 1)

    def checkpoint(self, epoch: int) -> None:
        """Save everything a restart needs; all ranks call it.

        Args:
            epoch: The one to go on with.
        """
        self._loader.save_ledger()
        content = {
            "epoch": epoch,
            "node": self._world.node,
            "run": asdict(self._now()),
            "tally": self._tally.state_dict(),
            "loader": self._loader.state_dict(),
        }
        self._engine.save(self._directory / FOLDER, content)

    def finish(self) -> None:
        """Test, export, and write summary and gallery."""
        last = self._evaluate(self._experiment.splits.test)
        totals = self._report.over_ranks(self._loader.totals)
        now = self._report.over_nodes(self._now())
        reused = self._loader.reused()
        flags = total(self._world, [float(n in reused) for n in range(len(self._loader.plan))])
        if last is None:
            return
        self._engine.export(self._directory / "model.safetensors")
        best = self._test_best()
        self._report.finish(now, last, best, totals, sum(flag > 0 for flag in flags))

    @property
    def _best_weights(self) -> Path:
        return self._directory / "best.safetensors"

    def _now(self) -> RunState:
        """The state of the run with this launch, and this node's generation, counted in."""
        wall_s = self._state.wall_s + time.monotonic() - self._built
        return replace(self._report.counted(self._state), wall_s=wall_s)

    def _stop(self, epoch: int, received: int) -> int:
        """Leave the epoch with a checkpoint; the signal that asked for it."""
        self.checkpoint(epoch)
        self._report.live.message("interrupted: checkpoint written, the same command goes on")
        return received

    def _step(self, epoch: int, batch: Batch) -> None:
        loss = self._engine.train_step(batch)
        if skipped := self._engine.loss_scale.after_step(self._engine.step):
            self._report.live.message(skipped)
        self._tally.add(loss, batch.served)
        if self._state.first_step_s is None:
            self._state.first_step_s = time.monotonic() - self._built
        self._losses.after_step()
        self._report.step(epoch, loss, self._tally)

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

    def _evaluate(self, images: ImageSet) -> Evaluation | None:
        """On the first rank, while the others wait; None on them."""
        self._engine.gather()
        found = self._judge(images) if self._world.is_first else None
        barrier(self._world)
        return found

    def _judge(self, images: ImageSet) -> Evaluation:
        return evaluate(
            self._engine.evaluated_model(),
            images,
            self._config.data,
            self._world.device,
            train_labels=self._experiment.splits.train.labels,
        )

    def _test_best(self) -> Evaluation:
        """Test accuracy of the weights that were best on the validation split."""
        model = self._engine.evaluated_model()
        last = {name: value.clone() for name, value in model.state_dict().items()}
        model.load_state_dict(load_file(self._best_weights))
        found = self._judge(self._experiment.splits.test)
        model.load_state_dict(last)
        return found

    def _is_due_after(self, step: int) -> bool:
        every = self._config.run.checkpoint_steps
        return every is not None and step % every == 0

    def _is_checkpoint_due(self, epoch: int) -> bool:
        every = self._config.run.checkpoint_epochs
        return (epoch + 1) % every == 0 or epoch + 1 == self._config.run.epochs
