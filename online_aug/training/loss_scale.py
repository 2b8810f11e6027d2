"""The scale of a loss in float16: kept the same way under all ZeRO stages, and watched."""

from typing import Any

from online_aug.errors import RunError

FIRST_SCALE, LEAST_SCALE = 2.0**16, 1.0
_GROWS_AFTER_STEPS = 2000


class LossScale:
    """Of one training; in other formats nothing is scaled."""

    def __init__(self, engine: Any, *, is_float16: bool) -> None:
        """Take the scale over from a DeepSpeed engine.

        Where DeepSpeed 0.19 divides the training state it would clip gradients that are still
        scaled, and not lower the scale of autocast after an overflow. The scaler of its own
        half-precision training does both right.
        """
        self._plain, self._divided = engine.torch_autocast_z0_gradscaler, None
        if hasattr(engine.optimizer, "torch_autocast_gradscaler"):
            _replace_scaler(engine.optimizer, is_float16)
            self._divided = engine.optimizer if is_float16 else None
        self._last = self.value
        self.skipped = 0
        """Steps since this launch whose gradients overflowed."""

    @property
    def value(self) -> float | None:
        """What the loss is multiplied with now; None where it is not."""
        if self._divided is not None:
            return float(self._divided.cur_scale)
        return None if self._plain is None else float(self._plain.get_scale())

    def after_step(self, step: int) -> str | None:
        """What to say of a step that was skipped, None of one that was done.

        Args:
            step: Its number.

        Raises:
            RunError: If even the least scale overflowed: loss or gradients are not finite.
        """
        before, now = self._last, self.value
        self._last = now
        if before is None or now is None or now >= before:
            return None
        self.skipped += 1
        if now < LEAST_SCALE:
            raise RunError(
                f"float16 overflows at step {step} even with the least scale of the loss, after "
                f"{self.skipped} skipped steps: loss or gradients are not finite; lower optim.lr "
                "or set classifier.precision to bfloat16 or float32"
            )
        return f"step {step} skipped, float16 overflowed: loss scale {now:g}, {self.skipped} so far"

    def state_dict(self) -> dict[str, Any] | None:
        """What DeepSpeed does not keep in its own part of a checkpoint."""
        return None if self._plain is None else dict(self._plain.state_dict())

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Go on with the scale of a checkpoint, of which DeepSpeed's part has been loaded."""
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
