"""One optimizer step on a DeepSpeed engine, and the checkpoint to continue from.

`TrainingEngine.train_step` is the step.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from copy import deepcopy
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import torch
from jaxtyping import Float
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from online_aug.classifier.class_names import class_metadata
from online_aug.classifier.losses import ClassifierLoss
from online_aug.classifier.model import input_statistics, prepare_training
from online_aug.classifier.optim import learning_rate, mix_batch, smooth
from online_aug.config import Config
from online_aug.data.transforms import normalise
from online_aug.distributed.world import World, agree, barrier, set_environment
from online_aug.errors import UserError, first_line
from online_aug.files import write_atomically
from online_aug.loader.batch import Batch
from online_aug.seeding import numpy_rng, torch_global_state
from online_aug.training import checkpoints
from online_aug.training.deepspeed_setup import (
    copy_whole,
    load_converted,
    save_plain,
    start_engine,
    zero_stage,
)
from online_aug.training.divergence import LossScale, StepGuard, is_finite

AVERAGE_FILE = "average.pt"
State = dict[str, Any]
States = list[State]
_SCALER = "loss_scaler"
"""Key in a rank's own state."""
Watch = Callable[[Float[Tensor, "b k"], Float[Tensor, "b k"]], None]
"""Called with logits and labels of every batch."""


class TrainingEngine:
    """Trains a classifier; Mixup and dropout are functions of seed, rank and step alone."""

    def __init__(
        self,
        classifier: nn.Module,
        config: Config,
        world: World,
        *,
        steps_per_epoch: float,
        class_names: Sequence[str] = (),
        class_sizes: Sequence[int] = (),
    ) -> None:
        """Move the classifier to the rank's device and hand it to DeepSpeed.

        Args:
            classifier: The network on the CPU.
            config: The configuration of the run.
            world: This rank among all ranks.
            steps_per_epoch: Batches that the samples of an epoch fill; the last one is left out if
                it is not whole, and only counts for the schedule.
            class_names: Names by label, kept with the weights; without them labels as digits.
            class_sizes: Training images by label; without them classes are taken as alike.

        Raises:
            UserError: If the batch size or `classifier.deepspeed` cannot be used.
        """
        self._config, self._world = config, world
        count = int(getattr(classifier, "num_classes", 0))
        self._class_names = tuple(class_names) or tuple(map(str, range(count)))
        self._loss = ClassifierLoss(config.optim, class_sizes or [1] * count, world.device)
        self.watch: Watch | None = None
        """Gets the logits in training, and the labels before smoothing."""
        self._steps_per_epoch, self._epoch_length = max(1, int(steps_per_epoch)), steps_per_epoch
        self._mean, self._std = input_statistics(classifier)
        self._format = (
            torch.channels_last if config.classifier.channels_last else torch.contiguous_format
        )
        classifier.to(world.device)
        prepare_training(classifier, config.classifier)
        ema = config.optim.ema
        self._average = None if ema is None else ModelEmaV3(classifier, decay=ema)
        # With weights divided among the ranks, evaluation and export need a whole copy.
        self._whole = deepcopy(classifier) if zero_stage(config) == 3 else None
        self._engine = start_engine(classifier, config, world)
        is_float16 = config.classifier.precision == "float16"
        self.loss_scale = LossScale(self._engine, is_float16=is_float16)
        self.guard = StepGuard(self._engine, self.loss_scale, world)
        if config.optim.skip_non_finite:
            self.guard.turn_on()
        if zero_stage(config) == 0:  # the other stages have put the weights into flat buffers
            self._engine.module.to(memory_format=self._format)

    @property
    def step(self) -> int:
        """Optimizer steps done so far."""
        return int(self._engine.global_steps)

    @property
    def lr(self) -> float:
        """Learning rate of the next step."""
        optim = self._config.optim
        length = self._epoch_length if optim.counts_left_over else self._steps_per_epoch
        total = int(self._config.run.epochs * length)
        return learning_rate(optim, self.step, total_steps=total, steps_per_epoch=length)

    def train_step(self, batch: Batch) -> Float[Tensor, ""]:
        """Do one optimizer step and return the loss of this rank's batch, still on the device."""
        optim, device = self._config.optim, self._world.device
        images = normalise(batch.images.to(device, non_blocking=True), self._mean, self._std)
        labels = batch.labels.to(device, non_blocking=True).to_dense()
        images, labels = mix_batch(images, labels, optim, numpy_rng("mixup", *self._entropy()))
        images = images.contiguous(memory_format=self._format)
        for group in self._engine.optimizer.param_groups:
            group["lr"] = self.lr * group.get("lr_scale", 1.0)
        seed = int(numpy_rng("dropout", *self._entropy()).integers(2**63))
        with torch_global_state(seed, device), self._launched():
            loss = self._descend(images, labels)
        if self._average is not None and not self.guard.was_skipped:
            self._average.update(self._engine.module, step=self.step)
        return loss

    def gather(self) -> None:
        """Collect divided weights; all ranks call it before one of them evaluates or exports."""
        if self._whole is not None:
            with self._launched():
                copy_whole(self._engine.module, self._whole)

    def evaluated_model(self) -> nn.Module:
        """Return the classifier to judge and export, with averaged weights if `optim.ema` is set.

        With ZeRO stage 3 its weights are those of the last `gather`.
        """
        if self._whole is not None:
            return self._whole
        if self._average is not None:
            return cast(nn.Module, self._average.module)
        return cast(nn.Module, self._engine.module)

    def is_finite(self) -> bool:
        """Return whether all weights and statistics are finite on all ranks; all call it."""
        average = [] if self._average is None else [self._average.module]
        return not agree(self._world, int(not is_finite(self._engine.module, *average)))

    def save(self, folder: Path, client_state: dict[str, Any]) -> None:
        """Write a checkpoint of this step; all ranks call it. The newest two are kept.

        Args:
            folder: Folder of all checkpoints of the run.
            client_state: This rank's own state: plain values, containers and tensors.

        Raises:
            TypeError: If `client_state` holds anything else, which could not be read back.
            UserError: If the disk has no room for it; the checkpoint before is still there.
        """
        path = checkpoints.checkpoint_path(folder, self.step)
        if self._world.is_first:
            checkpoints.discard(path)
        barrier(self._world)
        with checkpoints.room_for(path):
            self._write(path, client_state)
        barrier(self._world)
        if self._world.is_first:
            checkpoints.seal(path, self._made_with())
        barrier(self._world)

    def _write(self, path: Path, client_state: dict[str, Any]) -> None:
        with self._launched():
            self._engine.save_checkpoint(str(path.parent), tag=path.name, save_latest=False)
        own = {**client_state, _SCALER: self.loss_scale.state_dict()}
        save_plain(own, checkpoints.own_state_path(path, self._world.rank))
        if self._world.is_first and self._average is not None:
            torch.save(self._average.module.state_dict(), path / AVERAGE_FILE)

    def load(
        self, folder: Path, share_out: Callable[[States, World], State] | None = None
    ) -> State | None:
        """Load the newest whole checkpoint.

        Args:
            folder: Folder of all checkpoints of the run.
            share_out: Makes this rank's state of the states that all ranks saved, however many they
                were; None refuses another number of ranks.

        Returns:
            This rank's own state, or None if there is no checkpoint.

        Raises:
            UserError: If the checkpoint is of another classifier, of a number of ranks that cannot
                be changed, or cannot be read.
        """
        found = checkpoints.newest_step(folder)
        step = agree(self._world, -1 if found is None else found)
        if step < 0:
            return None
        path = checkpoints.checkpoint_path(folder, step)
        if not (path / checkpoints.MARKER).is_file():
            raise UserError(f"checkpoint {path} must be visible to every rank, missing here")
        checkpoints.check_same_training(
            path, self._config, self._made_with(), is_dealt_out=share_out is not None
        )
        try:
            states = self._restore(path)
            return share_out(states, self._world) if share_out else states[self._world.rank]
        except Exception as error:  # whatever a damaged file makes torch or DeepSpeed raise
            raise checkpoints.unreadable(path, first_line(error)) from error

    def export(self, path: Path) -> None:
        """Write the evaluated weights as safetensors that timm loads; only the first rank does."""
        if self._world.is_first:
            weights = self.evaluated_model().state_dict()
            # Safetensors knows one order of the channels.
            whole = {
                name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
                for name, value in weights.items()
            }
            write_atomically(
                path, safetensors.torch.save(whole, metadata=class_metadata(self._class_names))
            )

    def _descend(
        self, images: Float[Tensor, "b 3 h w"], labels: Float[Tensor, "b k"]
    ) -> Float[Tensor, ""]:
        parts = self._config.optim.accumulation
        losses: list[Float[Tensor, ""]] = []
        watched: list[tuple[Float[Tensor, "b k"], Float[Tensor, "b k"]]] = []
        with self.guard.step(losses):
            for some, wanted in zip(images.chunk(parts), labels.chunk(parts), strict=True):
                logits = self._engine(some).float()
                smoothed = smooth(wanted, self._config.optim.label_smoothing)
                loss = self._loss(logits, smoothed, self.step // self._steps_per_epoch)
                watched.append((logits.detach(), wanted))
                losses.append(loss.detach())
                self._engine.backward(self.guard.mark(loss))
                self._engine.step()  # DeepSpeed waits for the last part
        if self.watch is not None and not self.guard.was_skipped:
            for seen in watched:
                self.watch(*seen)
        return torch.stack(losses).mean()

    def _launched(self) -> AbstractContextManager[None]:
        # ZeRO stage 3 insists on the launcher's variable, also without a launcher.
        return set_environment(LOCAL_RANK=str(self._world.local_rank))

    def _entropy(self) -> tuple[int, int, int]:
        return self._config.run.seed, self._world.rank, self.step

    def _restore(self, path: Path) -> States:
        files = sorted(path.glob("rank_*.pt"))
        is_divided_otherwise = len(files) != self._world.world_size and zero_stage(self._config)
        with self._launched():
            if is_divided_otherwise:
                load_converted(self._engine, path, checkpoints.UNIVERSAL)
            else:
                self._engine.load_checkpoint(str(path.parent), tag=path.name)
        if self._average is not None:
            device = self._world.device
            average = torch.load(path / AVERAGE_FILE, map_location=device, weights_only=True)
            self._average.module.load_state_dict(average)
        states: States = [torch.load(file, weights_only=True) for file in files]
        scales = [state.pop(_SCALER) for state in states]
        self.loss_scale.load_state_dict(scales[0])
        return states

    def _made_with(self) -> checkpoints.MadeWith:
        return checkpoints.made_with(
            self._config,
            class_names=self._class_names,
            ranks=self._world.world_size,
        )
