"""The end of a training that has diverged: its losses or weights are not finite.

Nothing of it replaces a good checkpoint: weights are looked at before each checkpoint and each
evaluation, losses on the way.
"""

from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from online_aug.errors import UserError
from online_aug.training.checkpoints import FOLDER, checkpoint_path, newest_step

PATIENCE_STEPS = 5
"""Steps in a row without a finite loss that end a run; float16 may skip one now and then."""
LOOK_EVERY_STEPS = 10
"""Reading a loss waits for its device."""


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
            UserError: If the loss has not been finite for some steps.
        """
        self._in_a_row = (self._in_a_row + 1) * (~loss.isfinite()).long()
        if step % LOOK_EVERY_STEPS == 0 and (count := int(self._in_a_row)) >= PATIENCE_STEPS:
            raise self.error(f"the loss has not been finite for {count} steps up to step {step}")

    def error(self, what: str) -> UserError:
        """Return the error that ends the run.

        Args:
            what: What was found, such as `weights are not finite after step 12`.
        """
        newest = newest_step(self._directory / FOLDER)
        last = "no checkpoint was written before"
        if newest is not None:
            path = checkpoint_path(self._directory / FOLDER, newest)
            last = f"the last good checkpoint is {path}"
        return UserError(
            f"optim.lr must let training converge, got {self._lr:g}: {what}; lower it, set "
            f"optim.clip_grad or a longer optim.warmup_epochs, with run.resume=false; {last}"
        )
