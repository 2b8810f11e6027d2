"""The learning rate as a function of the step: nothing to save, nothing to restore."""

import math

from online_aug.config_training import OptimConfig


def learning_rate(
    optim: OptimConfig, step: int, *, total_steps: int, steps_per_epoch: int
) -> float:
    """The learning rate of optimizer step `step`, from 0.

    Rises linearly to `optim.lr` over the warm-up, whose last step has the peak; then falls along
    half a cosine that would reach 0 at `total_steps`, or stays.
    """
    warmup_steps = round(optim.warmup_epochs * steps_per_epoch)
    if step < warmup_steps:
        return optim.lr * (step + 1) / warmup_steps
    if optim.schedule == "constant":
        return optim.lr
    done = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return optim.lr * (1 + math.cos(math.pi * done)) / 2
