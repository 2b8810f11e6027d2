"""What a device and a model must have for fine-tuning, told before either is used."""

from pathlib import Path

import torch

from online_aug.errors import UserError
from online_aug.generation.model_settings import scheduler_settings

_AMPERE = (8, 0)
_PREDICTIONS = ("epsilon", "v_prediction")


def check_dtype(name: str, device: str) -> None:
    """Refuse a number format that the device cannot train in.

    Raises:
        UserError: If there is no loss scaling for float16, or no bfloat16.
    """
    if name == "float16" and device == "cpu":
        raise UserError(
            "finetune.dtype must be float32 or bfloat16 on cpu, got 'float16', whose loss scaling "
            "needs a GPU"
        )
    if name == "bfloat16" and device != "cpu" and _capability(device) < _AMPERE:
        raise UserError(
            f"finetune.dtype must be float32 or float16 on {device}, got 'bfloat16', which needs "
            "compute capability 8.0"
        )


def check_prediction(model: Path) -> None:
    """Refuse a model that was trained to predict something else than noise or velocity.

    Raises:
        UserError: If its scheduler says so.
    """
    said = scheduler_settings(model).get("prediction_type", "epsilon")
    if said not in _PREDICTIONS:
        raise UserError(
            f"generation.model must predict {' or '.join(_PREDICTIONS)} to be fine-tuned, "
            f"got {said!r} by the scheduler of {model}; set finetune.enabled=false"
        )


def _capability(device: str) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)
