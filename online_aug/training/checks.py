"""What can be refused about a training before anything is built or written."""

from collections.abc import Sequence

from online_aug.config import Config
from online_aug.dataloader.colours import check_policy
from online_aug.errors import UserError
from online_aug.training.classifier import check_classifier, check_precision
from online_aug.training.deepspeed_config import deepspeed_config
from online_aug.training.optimizers import check_optimizer


def check_training(config: Config, devices: Sequence[str], ranks: int | None = None) -> None:
    """Refuse classifier, optimizer, transforms or DeepSpeed settings that cannot be used.

    Args:
        config: Of the run.
        devices: That train on this node.
        ranks: Of all nodes; None if they are one for each of these devices.

    Raises:
        UserError: If one of them cannot.
    """
    deepspeed_config(config, ranks or len(devices))
    check_classifier(config.classifier)
    check_precision(config.classifier, devices)
    check_optimizer(config.optim)
    check_policy(config.data)
    if config.optim.min_lr > config.optim.lr:
        raise UserError(
            f"optim.min_lr must be at most optim.lr, got {config.optim.min_lr:g} "
            f"for {config.optim.lr:g}"
        )
