"""What the directory of a model says of its parts, read without loading them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from online_aug.errors import UserError


def scheduler_settings(model: Path) -> Mapping[str, Any]:
    """How it was trained, and how its time steps are spaced.

    Raises:
        UserError: If the file cannot be read.
    """
    return _read(model / "scheduler" / "scheduler_config.json")


def unet_settings(model: Path) -> Mapping[str, Any]:
    """What its network is built of and takes.

    Raises:
        UserError: If the file cannot be read.
    """
    return _read(model / "unet" / "config.json")


def _read(path: Path) -> Mapping[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"generation.model must have a readable {path}, got {error!r}") from None
