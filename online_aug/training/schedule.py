"""The learning rate as a function of the step: nothing to save, nothing to restore."""

import math

import torch
from timm.scheduler import create_scheduler_v2

from online_aug.config_training import OptimConfig


def learning_rate(
    optim: OptimConfig, step: int, *, total_steps: int, steps_per_epoch: int
) -> float:
    """The learning rate of optimizer step `step`, from 0.

    Rises linearly to `optim.lr` over the warm-up, whose last step has the peak. Then it stays, or
    falls along half a cosine that would reach `optim.min_lr` at `total_steps`, or is timm's
    schedule, which counts from the start of the run.
    """
    warmup_steps = round(optim.warmup_epochs * steps_per_epoch)
    if step < warmup_steps:
        return optim.lr * (step + 1) / warmup_steps
    if optim.schedule == "constant":
        return optim.lr
    if optim.schedule != "cosine":
        return _timm_rate(optim, step, total_steps // steps_per_epoch, steps_per_epoch)
    done = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return optim.min_lr + (optim.lr - optim.min_lr) * (1 + math.cos(math.pi * done)) / 2


def _timm_rate(optim: OptimConfig, step: int, epochs: int, steps_per_epoch: int) -> float:
    # timm's schedulers write into an optimizer; one of a single number costs microseconds.
    holder = torch.optim.SGD([torch.zeros(1)], lr=optim.lr)
    scheduler, _ = create_scheduler_v2(
        holder,
        sched=optim.schedule,
        num_epochs=epochs,
        decay_epochs=optim.decay_epochs[0],
        decay_milestones=list(optim.decay_epochs),
        decay_rate=optim.decay_rate,
        min_lr=optim.min_lr,
        step_on_epochs=False,
        updates_per_epoch=steps_per_epoch,
    )
    scheduler.step_update(step)
    return float(holder.param_groups[0]["lr"])
