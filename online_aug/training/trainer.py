"""One rank's run from its first epoch to its summary, and what it remembers on the way."""

import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from jaxtyping import Float
from safetensors.torch import load_file
from torch import nn

from online_aug.classifier.class_names import BEST_FILE, MODEL_FILE
from online_aug.classifier.evaluation import Evaluation, evaluate, log_probabilities
from online_aug.classifier.hub_format import write_hub_config
from online_aug.data.image_sets import ImageSet, order_digest
from online_aug.distributed.world import World, agree, barrier, gather, gather_counts, total
from online_aug.errors import UserError
from online_aug.experiment.experiment import Experiment
from online_aug.loader.batch import Batch
from online_aug.loader.loader import OnlineAugLoader
from online_aug.loader.sampler import StopWaiting
from online_aug.loader.slots import order_of
from online_aug.methods import Picture
from online_aug.processes import Interrupt
from online_aug.request import Counts
from online_aug.training.checkpoints import FOLDER, share_out
from online_aug.training.divergence import DivergenceError, DivergenceWatch
from online_aug.training.engine import TrainingEngine
from online_aug.training.feedback import LossPublisher, SaliencyPublisher
from online_aug.training.reporter import EpochTally, TrainingReport


@dataclass(kw_only=True)
class RunState:
    """The part of a checkpoint beside weights, loader and epoch."""

    wall_s: float = 0.0
    """Time of earlier launches."""
    first_step_s: float | None = None
    """Time from the classifier being built to the end of the first step."""
    first_fresh_s: float | None = None
    """The same to the first fresh image that this rank received, in the launch that served it; None
    before."""
    best_top1: float = -1.0
    """Best accuracy on the validation split."""
    best_epoch: int = -1
    skipped: int = 0
    """Steps skipped so far."""
    skipped_in_a_row: int = 0
    """The same since the last step that was not."""
    epoch_start: Counts = Counts()
    """This rank's counts at the start of the epoch in progress."""

    @classmethod
    def resumed(cls, state: Mapping[str, Any]) -> Self:
        """Return the state that a checkpoint holds as plain values."""
        return cls(**{**state, "epoch_start": Counts(**state["epoch_start"])})


class TrainingRun:
    """The steps of a run in order; `train_rank` calls them."""

    def __init__(
        self,
        experiment: Experiment,
        classifier: nn.Module,
        loader: OnlineAugLoader,
        world: World,
        directory: Path,
        before_s: float = 0.0,
    ) -> None:
        """Hand the classifier to the engine and start the clock of `first_step_s`.

        Args:
            experiment: What is trained on.
            classifier: On the CPU.
            loader: Serves this rank.
            world: This rank among all ranks.
            directory: Run directory.
            before_s: Time that this launch has taken so far, such as for fine-tuning.
        """
        self._built = time.monotonic()
        self._before_s = before_s
        self._experiment, self._config, self._world = experiment, experiment.config, world
        self._loader, self._directory = loader, directory
        loader.gives_sparse_labels = True  # of thousands of classes nearly all shares are 0
        self._publisher = SaliencyPublisher(experiment, loader, world, directory)
        order = order_of(experiment.config, experiment.splits.train)
        self._engine = TrainingEngine(
            classifier,
            experiment.config,
            world,
            steps_per_epoch=order.samples / order.batch_size,
            class_names=experiment.splits.train.class_names,
            class_sizes=experiment.data.class_sizes,
        )
        self._divergence = DivergenceWatch(directory, experiment.config.optim.lr)
        self._losses = LossPublisher(experiment, loader.process, world.device)
        if self._losses.classes is not None:
            self._engine.watch = self._losses.classes.add
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
        """Continue from the newest checkpoint, if there is one."""
        saved = self._engine.load(self._directory / FOLDER, share_out)
        if saved is not None:
            self._state = RunState.resumed(saved["run"])
            self._tally = EpochTally(**saved["tally"])
            self.first_epoch = saved["epoch"]
            self._publisher.resume(self.first_epoch)
            self._loader.load_state_dict(saved["loader"])
            place = f"epoch {self.first_epoch + 1}, step {self._loader.step}"
            self._report.live.message(f"resumed at {place}")
        self._report.begin(self.first_epoch)

    def train_epoch(self, epoch: int, interrupt: Interrupt) -> int:
        """Train the rest of an epoch.

        Returns:
            0, or the signal that ended the epoch early; a checkpoint is then written.

        Raises:
            UserError: If no more batches can be made, because an image cannot be read or the
                generation process gave up. A run of one rank has then written a checkpoint, unless
                training has diverged.
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
        except DivergenceError:
            raise
        except UserError:
            if self._world.world_size == 1:  # the other ranks do not know and train on
                self.checkpoint(epoch)
            raise
        return 0

    def _timed(self, loader: OnlineAugLoader) -> Iterator[Batch]:
        batches = iter(loader)
        while True:
            asked = time.monotonic()
            batch = next(batches, None)
            received = time.monotonic()
            self._tally.wait_s += received - asked
            if batch is None:
                return
            if batch.served.fresh and self._state.first_fresh_s is None:
                self._state.first_fresh_s = received - self._built
            yield batch

    def _step(self, epoch: int, batch: Batch) -> None:
        loss, step = self._engine.train_step(batch), self._engine.step
        overflowed = self._engine.loss_scale.after_step(step)
        self._count_skips(step, overflowed)
        if not self._engine.guard.was_skipped:
            self._divergence.after_step(step, loss)
            self._tally.add(loss)
        if self._state.first_step_s is None:
            self._state.first_step_s = time.monotonic() - self._built
        self._losses.after_step(self._engine.step)
        self._report.step(epoch, loss, self._loader.counts - self._state.epoch_start)

    def _count_skips(self, step: int, overflowed: str | None) -> None:
        state, is_bad = self._state, self._engine.guard.was_skipped
        if not (is_bad or overflowed):
            state.skipped_in_a_row = 0
            return
        state.skipped += 1
        state.skipped_in_a_row += is_bad
        self._tally.skipped += 1
        said = f"step {step} skipped, loss or gradients are not finite: {state.skipped} so far"
        self._report.live.message(overflowed or said)
        self._divergence.after_skips(step, state.skipped_in_a_row)

    def _stop(self, epoch: int, received: int) -> int:
        self.checkpoint(epoch)
        self._report.live.message("interrupted: checkpoint written, the same command goes on")
        return received

    def validate(self, epoch: int) -> None:
        """Evaluate on the validation split if there is one, and report the epoch.

        The weights that are best there are kept.
        """
        train_s = self._tally.train_s
        self._check_finite()
        began = time.monotonic()
        validation = self._experiment.splits.val
        found = self._evaluate(validation) if len(validation) else None
        val_s = time.monotonic() - began
        if found and found.top1 > self._state.best_top1:
            self._state.best_top1, self._state.best_epoch = found.top1, epoch
            self._engine.export(self._best_weights)
        counts, ranks = self._loader.counts, self._world.world_size
        own = counts - self._state.epoch_start
        everywhere = self._over_ranks(own)
        loss = total(self._world, [self._tally.mean_loss])[0] / ranks
        if self._world.is_first:
            self._report.epoch(
                found, everywhere,
                epoch=epoch, step=self._engine.step, train_loss=loss, lr=self._engine.lr,
                images_per_s=own.slots * ranks / train_s, loader_wait_s=self._tally.wait_s,
                val_s=val_s, skipped=self._tally.skipped,
            )  # fmt: skip
        self._loader.set_epoch(epoch + 1)
        self._state.epoch_start, self._tally = counts, EpochTally()
        if self._is_checkpoint_due(epoch):
            self.checkpoint(epoch + 1)

    def _evaluate(self, images: ImageSet) -> Evaluation | None:
        self._engine.gather()
        found = self._judge(images) if self._world.is_first else None
        barrier(self._world)  # the others wait for the first
        return found

    def _judge(self, images: ImageSet) -> Evaluation:
        return evaluate(
            self._engine.evaluated_model(),
            images,
            self._config.data,
            self._world.device,
            train_labels=self._experiment.splits.train.labels,
        )

    def _over_ranks(self, counts: Counts) -> Counts:
        sums = total(self._world, list(vars(counts).values()))
        return Counts(**{name: int(n) for name, n in zip(vars(counts), sums, strict=True)})

    def checkpoint(self, epoch: int) -> None:
        """Save everything that a restart needs; all ranks call it.

        Args:
            epoch: The epoch to continue with.

        Raises:
            UserError: If training has diverged; nothing is then written.
        """
        self._check_finite()
        self._loader.save_ledger()
        content = {
            "epoch": epoch,
            "node": self._world.node,
            "run": asdict(replace(self._state, wall_s=self._wall_s)),
            "tally": self._tally.state_dict(),
            "loader": self._loader.state_dict(),
            "images": order_digest(self._experiment.splits.train),
            "foregrounds": self._experiment.saliency.version,
        }
        self._engine.save(self._directory / FOLDER, content)

    def _check_finite(self) -> None:
        if not self._engine.is_finite():
            raise self._divergence.error(
                f"weights or statistics are not finite after step {self._engine.step}"
            )

    def finish(self) -> None:
        """Test, export the weights, and write summary, report and gallery."""
        last, wall_s = self._evaluate(self._experiment.splits.test), self._wall_s
        counts = self._over_ranks(self._loader.counts)
        reused, times = self._loader.reused(), self._loader.times_served
        whole = gather_counts(self._world, dict.fromkeys(reused, 1))
        served = gather_counts(self._world, times)
        refusals = gather(self._world, json.dumps(self._loader.refusals).encode())
        fresh = gather(self._world, json.dumps(self._state.first_fresh_s).encode())
        if last is None:
            return
        self._engine.export(self._directory / MODEL_FILE)
        write_hub_config(self._directory, self._engine.evaluated_model(), self._config.data)
        self._report.finish(
            counts, last, self._test_best(), self._log_probabilities,
            wall_s=wall_s, skipped=self._state.skipped,
            first_step_s=float(self._state.first_step_s or 0.0),
            first_fresh_s=_earliest(json.loads(each) for each in fresh),
            reused=len(whole),
            most_served=max(served.values(), default=0),
            refusals=dict(sum((Counter(json.loads(each)) for each in refusals), Counter[str]())),
        )  # fmt: skip

    def _log_probabilities(self, pictures: Sequence[Picture]) -> Float[np.ndarray, "n k"]:
        model, data = self._engine.evaluated_model(), self._config.data
        return log_probabilities(model, pictures, data, self._world.device)

    def _test_best(self) -> tuple[int, Evaluation] | None:
        if self._state.best_epoch < 0:  # nothing to validate on
            return None
        model = self._engine.evaluated_model()
        last = {name: value.clone() for name, value in model.state_dict().items()}
        model.load_state_dict(load_file(self._best_weights))
        found = self._judge(self._experiment.splits.test)
        model.load_state_dict(last)
        return self._state.best_epoch, found

    @property
    def _best_weights(self) -> Path:
        return self._directory / BEST_FILE

    @property
    def _wall_s(self) -> float:
        return self._state.wall_s + self._before_s + time.monotonic() - self._built

    def _is_due_after(self, step: int) -> bool:
        every = self._config.run.checkpoint_steps
        return every is not None and step % every == 0

    def _is_checkpoint_due(self, epoch: int) -> bool:
        every = self._config.run.checkpoint_epochs
        return (epoch + 1) % every == 0 or epoch + 1 == self._config.run.epochs


def _earliest(times: Iterable[float | None]) -> float | None:
    return min((each for each in times if each is not None), default=None)
