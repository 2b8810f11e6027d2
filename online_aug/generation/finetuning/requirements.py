"""What a device and a model must have for fine-tuning, told before either is used."""

import json
from pathlib import Path

import torch

from online_aug.errors import UserError

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
    path = model / "scheduler" / "scheduler_config.json"
    try:
        said = json.loads(path.read_text()).get("prediction_type", "epsilon")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"generation.model must have a readable {path}, got {error!r}") from None
    if said not in _PREDICTIONS:
        raise UserError(
            f"generation.model must predict {' or '.join(_PREDICTIONS)} to be fine-tuned, "
            f"got {said!r} in {path}; set finetune.enabled=false"
        )


def _capability(device: str) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)
