"""Mixup and CutMix over soft labels, drawn by timm."""

import numpy as np
import torch
from jaxtyping import Float
from timm.data import Mixup
from torch import Tensor

from online_aug.config_training import OptimConfig
from online_aug.seeding import numpy_global_state


def mix_batch(
    images: Float[Tensor, "b 3 h w"],
    labels: Float[Tensor, "b k"],
    optim: OptimConfig,
    rng: np.random.Generator,
) -> tuple[Float[Tensor, "b 3 h w"], Float[Tensor, "b k"]]:
    """The batch under Mixup or CutMix, a coin toss where both are on; as it is where both are off.

    timm mixes class indices. Asked for a batch whose classes are its own positions, its soft
    targets are the weights of each image in each mixture, and these mix any labels. It pairs the
    first with the last, so of an odd batch the last image stays as it is.

    Args:
        images: Normalised; changed in place.
        labels: Rows that sum to 1.
        optim: Beta parameters, and how often there is mixing at all.
        rng: Source of all chance.
    """
    paired = len(images) - len(images) % 2
    if paired == 0 or not (optim.mixup or optim.cutmix):
        return images, labels
    mixup = Mixup(
        mixup_alpha=optim.mixup or 0.0,
        cutmix_alpha=optim.cutmix or 0.0,
        prob=optim.mix_probability,
        label_smoothing=0.0,
        num_classes=paired,
    )
    with numpy_global_state(rng):
        _, weights = mixup(images[:paired], torch.arange(paired, device=images.device))
    return images, torch.cat([weights.to(labels.dtype) @ labels[:paired], labels[paired:]])
