"""Optimizer, Mixup and CutMix, label smoothing, and the learning rate of each step."""

import math

import numpy as np
import torch
from jaxtyping import Float
from timm.data import Mixup
from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers
from timm.scheduler import create_scheduler_v2
from torch import Tensor, nn

from cache.text import nearest_hint
from online_aug.config.training import OptimConfig
from online_aug.errors import UserError, one_line
from online_aug.seeding import numpy_global_state


def build_optimizer(classifier: nn.Module, optim: OptimConfig) -> torch.optim.Optimizer:
    """Build timm's optimizer for the trainable weights of a classifier.

    With layer decay each parameter group has the factor of its learning rate as `lr_scale`.

    Raises:
        UserError: If it cannot be built with these settings.
    """
    # timm's "sgd" is Nesterov's, which PyTorch rejects without momentum.
    is_plain = optim.name in ("sgd", "nesterov") and optim.momentum == 0
    try:
        optimizer: torch.optim.Optimizer = create_optimizer_v2(
            classifier,
            opt="momentum" if is_plain else optim.name,
            lr=optim.lr,
            weight_decay=optim.weight_decay,
            momentum=optim.momentum,
            layer_decay=optim.layer_decay,
            filter_bias_and_bn=not optim.decays_all,
            **optim.options,
        )
    except (AssertionError, ImportError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            "optim.name and optim.options must be an optimizer of timm that can be built, got "
            f"{optim.name} and {optim.options}: {one_line(error)}"
        ) from None
    return optimizer


def check_optimizer(optim: OptimConfig) -> None:
    """Raise if timm does not have an optimizer or cannot build it.

    Raises:
        UserError: If so; names the nearest optimizers.
    """
    if optim.name not in list_optimizers():
        hint = nearest_hint(optim.name, list_optimizers())
        raise UserError(f"optim.name must be an optimizer of timm, got {optim.name!r}{hint}")
    if get_optimizer_info(optim.name).second_order:
        raise UserError(
            f"optim.name must be an optimizer that needs first derivatives only, got {optim.name}"
        )
    # Layer decay needs the layers of the classifier, which is not built yet.
    build_optimizer(nn.Linear(2, 2), optim.model_copy(update={"layer_decay": None}))


def mix_batch(
    images: Float[Tensor, "b 3 h w"],
    labels: Float[Tensor, "b k"],
    optim: OptimConfig,
    rng: np.random.Generator,
) -> tuple[Float[Tensor, "b 3 h w"], Float[Tensor, "b k"]]:
    """Apply Mixup or CutMix to a batch of soft labels; if both are on, one of them at random.

    timm mixes class indices. Given the positions in the batch as classes, its soft targets are the
    weights of each image in each mixture, which can mix any labels. timm pairs images and needs an
    even number, so the last image of an odd batch stays as it is.

    Args:
        images: Normalised images, changed in place.
        labels: Soft labels, rows that sum to 1.
        optim: Parameters of the Beta distributions, and the probability of mixing at all.
        rng: Source of all randomness.
    """
    paired = len(images) - len(images) % 2
    if paired == 0 or not (optim.mixup or optim.cutmix):
        return images, labels
    mixup = Mixup(
        mixup_alpha=optim.mixup or 0.0,
        cutmix_alpha=optim.cutmix or 0.0,
        prob=optim.mix_probability,
        mode="batch" if optim.mix_by == "batch" else "elem",
        label_smoothing=0.0,
        num_classes=paired,
    )
    with numpy_global_state(rng):
        _, weights = mixup(images[:paired], torch.arange(paired, device=images.device))
    return images, torch.cat([weights.to(labels.dtype) @ labels[:paired], labels[paired:]])


def smooth(labels: Float[Tensor, "b k"], smoothing: float) -> Float[Tensor, "b k"]:
    """Move the fraction `smoothing`, in [0, 1), of each label to the uniform distribution."""
    return labels * (1 - smoothing) + smoothing / labels.shape[1]


def learning_rate(
    optim: OptimConfig, step: int, *, total_steps: int, steps_per_epoch: float
) -> float:
    """Return the learning rate of optimizer step `step`, counted from 0.

    It rises linearly to `optim.lr`, which the last warm-up step has. Then it is constant, or falls
    along half a cosine that reaches `optim.min_lr` at `total_steps`, or follows a schedule that
    counts from the start of the run. A pure function of the step needs no saved state.
    """
    if optim.schedule_by == "epoch":
        step, total_steps = (int(n // steps_per_epoch) for n in (step, total_steps))
        steps_per_epoch = 1
    warmup_steps = optim.warmup_epochs * steps_per_epoch
    warmup_steps = int(warmup_steps) if optim.warmup == "over" else round(warmup_steps)
    risen = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    if optim.warmup == "before" and step < warmup_steps:
        return optim.lr * risen
    start = warmup_steps if optim.warmup == "before" else 0
    return risen * _scheduled(optim, step, start, total_steps, steps_per_epoch)


def _scheduled(
    optim: OptimConfig, step: int, start: int, total_steps: int, steps_per_epoch: float
) -> float:
    epochs = step / steps_per_epoch
    match optim.schedule:
        case "constant":
            return optim.lr
        case "cosine":
            done = min(1.0, (step - start) / max(1, total_steps - start))
            return optim.min_lr + (optim.lr - optim.min_lr) * (1 + math.cos(math.pi * done)) / 2
        case "step":
            return float(optim.lr * optim.decay_rate ** (epochs // optim.decay_epochs[0]))
        case "multistep":
            passed = sum(epochs >= after for after in optim.decay_epochs)
            return float(optim.lr * optim.decay_rate**passed)
    return _timm_rate(optim, step, int(total_steps // steps_per_epoch), round(steps_per_epoch))


def _timm_rate(optim: OptimConfig, step: int, epochs: int, steps_per_epoch: int) -> float:
    # timm's schedulers write into an optimizer; one with a single number costs microseconds.
    holder = torch.optim.SGD([torch.zeros(1)], lr=optim.lr)
    scheduler, _ = create_scheduler_v2(
        holder,
        sched=optim.schedule,
        num_epochs=epochs,
        decay_rate=optim.decay_rate,
        min_lr=optim.min_lr,
        step_on_epochs=False,
        updates_per_epoch=steps_per_epoch,
    )
    scheduler.step_update(step)
    return float(holder.param_groups[0]["lr"])
