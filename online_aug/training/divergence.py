"""Losses, gradients and weights that are not finite: steps skipped, and the end of a run.

Nothing of a training that has diverged replaces a good checkpoint: weights are looked at before
each checkpoint and each evaluation, losses on the way. `StepGuard` skips single steps instead, and
`LossScale` watches the scale of the loss in float16.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from online_aug.distributed.world import World, agree
from online_aug.errors import UserError
from online_aug.training.checkpoints import FOLDER, checkpoint_path, newest_step

PATIENCE_STEPS = 5
"""Steps in a row without a finite loss that end a run; float16 may skip one now and then."""
LOOK_EVERY_STEPS = 10
"""Reading a loss waits for its device."""
MOST_SKIPPED = 20
"""Steps skipped in a row that end a run; float16 itself gives up before."""


class DivergenceError(UserError):
    """The end of a training that has diverged, after which no checkpoint is written."""


def is_finite(*modules: nn.Module) -> bool:
    """Return whether no weight and no statistic is NaN or infinite; waits for their device."""
    held = [value for module in modules for value in module.state_dict().values()]
    found: list[Bool[Tensor, ""]] = [t.isfinite().all() for t in held if t.is_floating_point()]
    return not found or bool(torch.stack(found).all())


class DivergenceWatch:
    """Ends a run whose losses or weights are not finite."""

    def __init__(self, directory: Path, lr: float) -> None:
        """Watch the run in `directory`, whose peak learning rate is `lr`."""
        self._directory, self._lr = directory, lr
        self._in_a_row: Int[Tensor, ""] | int = 0

    def after_step(self, step: int, loss: Float[Tensor, ""]) -> None:
        """Count a step.

        Raises:
            DivergenceError: If the loss has not been finite for some steps.
        """
        self._in_a_row = (self._in_a_row + 1) * (~loss.isfinite()).long()
        if step % LOOK_EVERY_STEPS == 0 and (count := int(self._in_a_row)) >= PATIENCE_STEPS:
            raise self.error(f"the loss has not been finite for {count} steps up to step {step}")

    def after_skips(self, step: int, in_a_row: int) -> None:
        """Look at how many steps were skipped in a row, up to this one.

        Raises:
            DivergenceError: If they are too many.
        """
        if in_a_row >= MOST_SKIPPED:
            raise self.error(f"{in_a_row} steps in a row were skipped up to step {step}")

    def error(self, what: str) -> DivergenceError:
        """Return the error that ends the run.

        Args:
            what: What was found, such as `weights are not finite after step 12`.
        """
        newest = newest_step(self._directory / FOLDER)
        last = "no checkpoint was written before"
        if newest is not None:
            path = checkpoint_path(self._directory / FOLDER, newest)
            last = f"the last good checkpoint is {path}"
        return DivergenceError(
            f"optim.lr must let training converge, got {self._lr:g}: {what}; lower it, set "
            f"optim.clip_grad or a longer optim.warmup_epochs, with run.resume=false; {last}"
        )


class StepGuard:
    """Skips an optimizer step on all ranks if a loss or a gradient of one is not finite.

    A loss that is not finite makes the gradients of its batch NaN. The sum over the ranks brings
    them to every rank, each of which then leaves weights, optimizer state and statistics as they
    were. Waits for the device in every step.
    """

    def __init__(self, engine: Any, loss_scale: "LossScale", world: World) -> None:
        """Guard a DeepSpeed engine, whose step is taken as it is unless `turn_on` is called."""
        self._engine, self._loss_scale, self._world = engine, loss_scale, world
        self._gate: _Gate | None = None
        self._is_on = self.was_skipped = False
        """Whether the last step was skipped; always False if the guard is off."""

    def turn_on(self) -> None:
        """Skip steps from now on."""
        self._is_on = True
        if self._engine.zero_optimization():
            self._engine.optimizer.check_grad_overflow = True
        elif self._engine.torch_autocast_z0_gradscaler is None:
            self._gate = self._engine.torch_autocast_z0_gradscaler = _Gate()

    def mark(self, loss: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """Return the loss, with gradients that are NaN if it is not finite."""
        if not self._is_on:
            return loss
        factor = torch.where(loss.detach().isfinite(), 1.0, float("nan"))
        return loss * factor

    @contextmanager
    def step(self, losses: list[Float[Tensor, ""]]) -> Iterator[None]:
        """Find out whether the step of this block is skipped, and put statistics back if it is.

        Args:
            losses: The losses of the parts of the batch, filled in the block.
        """
        if not self._is_on:
            yield
            return
        held, scale = list(self._engine.module.buffers()), self._loss_scale.value
        before = [buffer.clone() for buffer in held]
        yield
        self.was_skipped = self._is_skipped(scale)
        if not self.was_skipped:
            return
        for buffer, value in zip(held, before, strict=True):
            buffer.copy_(value)
        is_bad = not torch.stack(losses).isfinite().all()
        if scale is not None and agree(self._world, int(is_bad)):
            self._loss_scale.put_back(scale)  # it is not the scale that made a loss overflow

    def _is_skipped(self, scale: float | None) -> bool:
        if self._gate is not None:
            return self._gate.was_skipped
        if self._engine.zero_optimization():
            return bool(self._engine.optimizer.overflow)
        now = self._loss_scale.value
        return scale is not None and now is not None and now < scale


class _Gate:
    """Takes the place of DeepSpeed's scaler of the loss where nothing is scaled nor divided."""

    def __init__(self) -> None:
        self.was_skipped = False

    def scale(self, loss: Float[Tensor, ""]) -> Float[Tensor, ""]:
        return loss

    def unscale_(self, optimizer: torch.optim.Optimizer) -> None:
        pass

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        found = [weight.grad.isfinite().all() for weight in weights if weight.grad is not None]
        self.was_skipped = not torch.stack(found).all()
        if not self.was_skipped:
            optimizer.step()

    def update(self) -> None:
        pass


FIRST_SCALE, LEAST_SCALE = 2.0**16, 1.0
"""Scale at the start, and the scale at which an overflow ends the run."""
_GROWS_AFTER_STEPS = 2000


class LossScale:
    """The scale of the loss in float16 training; in other formats nothing is scaled."""

    def __init__(self, engine: Any, *, is_float16: bool) -> None:
        """Take over the scale of a DeepSpeed engine.

        With ZeRO stages above 0, DeepSpeed 0.19 clips gradients that are still scaled, and does not
        lower the scale of autocast after an overflow. The scaler of its own half-precision training
        does both right, and replaces it.
        """
        self._plain, self._divided = engine.torch_autocast_z0_gradscaler, None
        if hasattr(engine.optimizer, "torch_autocast_gradscaler"):
            _replace_scaler(engine.optimizer, is_float16)
            self._divided = engine.optimizer if is_float16 else None
        self._last = self.value
        self.skipped = 0
        """Steps of this launch that were skipped because gradients overflowed."""

    @property
    def value(self) -> float | None:
        """Factor of the loss now; None if the loss is not scaled."""
        if self._divided is not None:
            return float(self._divided.cur_scale)
        return None if self._plain is None else float(self._plain.get_scale())

    def after_step(self, step: int) -> str | None:
        """Check whether a step was skipped.

        Args:
            step: Number of the step.

        Returns:
            A message about a skipped step, or None.

        Raises:
            DivergenceError: If even the least scale overflowed: loss or gradients are not finite.
        """
        before, now = self._last, self.value
        self._last = now
        if before is None or now is None or now >= before:
            return None
        self.skipped += 1
        if now < LEAST_SCALE:
            raise DivergenceError(
                f"float16 overflows at step {step} even with the least scale of the loss, after "
                f"{self.skipped} skipped steps: loss or gradients are not finite; lower optim.lr "
                "or set classifier.precision to bfloat16 or float32"
            )
        return f"step {step} skipped, float16 overflowed: loss scale {now:g}, {self.skipped} so far"

    def put_back(self, value: float) -> None:
        """Go back to a scale, after a step that was skipped for another reason."""
        if self._divided is not None:
            self._divided.loss_scaler.cur_scale = value
        elif self._plain is not None:
            self._plain.update(value)

    def state_dict(self) -> dict[str, Any] | None:
        """Return what DeepSpeed does not keep in its own part of a checkpoint."""
        return None if self._plain is None else dict(self._plain.state_dict())

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Take the scale of a checkpoint; DeepSpeed's own part must have been loaded before."""
        if state is not None and self._plain is not None:
            self._plain.load_state_dict(state)
        self._last = self.value


def _replace_scaler(optimizer: Any, is_float16: bool) -> None:
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler

    optimizer.torch_autocast_gradscaler = None
    if is_float16:
        optimizer.dynamic_loss_scale = True
        optimizer.loss_scaler = DynamicLossScaler(
            init_scale=FIRST_SCALE,
            scale_window=_GROWS_AFTER_STEPS,
            min_scale=LEAST_SCALE / 2,
            delayed_shift=1,
            consecutive_hysteresis=False,
        )
