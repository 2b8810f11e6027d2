"""timm's optimizers by name, with our settings."""

import difflib

import torch
from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers
from torch import nn

from online_aug.config_training import OptimConfig
from online_aug.errors import UserError, one_line


def build_optimizer(classifier: nn.Module, optim: OptimConfig) -> torch.optim.Optimizer:
    """An optimizer of what is trained of the classifier.

    Each group of weights has the factor of its learning rate as `lr_scale` where layers differ.

    Raises:
        UserError: If it cannot be built with these settings.
    """
    # timm's "sgd" is Nesterov's, which PyTorch refuses without momentum.
    is_plain = optim.name in ("sgd", "nesterov") and optim.momentum == 0
    try:
        optimizer: torch.optim.Optimizer = create_optimizer_v2(
            classifier,
            opt="momentum" if is_plain else optim.name,
            lr=optim.lr,
            weight_decay=optim.weight_decay,
            momentum=optim.momentum,
            layer_decay=optim.layer_decay,
            **optim.options,
        )
    except (AssertionError, ImportError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            "optim.name and optim.options must be an optimizer of timm that can be built, got "
            f"{optim.name} and {optim.options}: {one_line(error)}"
        ) from None
    return optimizer


def check_optimizer(optim: OptimConfig) -> None:
    """Refuse an optimizer that timm does not have or cannot build.

    Raises:
        UserError: If so; says which names are nearest.
    """
    if optim.name not in list_optimizers():
        nearest = difflib.get_close_matches(optim.name, list_optimizers(), 3)
        hint = f"; nearest: {', '.join(nearest)}" if nearest else ""
        raise UserError(f"optim.name must be an optimizer of timm, got {optim.name!r}{hint}")
    if get_optimizer_info(optim.name).second_order:
        raise UserError(
            f"optim.name must be an optimizer that needs first derivatives only, got {optim.name}"
        )
    # Layers are counted by the classifier, which is not built yet.
    build_optimizer(nn.Linear(2, 2), optim.model_copy(update={"layer_decay": None}))
