"""Weights of training images from a file: which are to be varied first."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from online_aug.errors import UserError


def read_image_weights(
    path: Path, digests: Sequence[str], files: Sequence[str]
) -> dict[str, float]:
    """The weight of every image that a file names, by the image's digest.

    Args:
        path: JSON, a mapping of images to numbers above 0. An image is called by its file as the
            data set lists it, or by its digest.
        digests: Of the training images.
        files: Of the same images; empty where they are not in files.

    Raises:
        UserError: If it cannot be read, or holds other images or other numbers.
    """
    named = dict(zip(digests, digests, strict=True))
    if files:
        named |= dict(zip(files, digests, strict=True))
    weights = {}
    for name, weight in _read(path).items():
        if name not in named:
            raise UserError(
                "schedule.image_weights must name training images, such as "
                f"{[*digests, *files][-1]!r}, got {name!r} in {path}"
            )
        if not _is_weight(weight):
            raise UserError(
                "schedule.image_weights must hold numbers above 0, got "
                f"{json.dumps(weight)} for {name!r} in {path}"
            )
        weights[named[name]] = float(weight)
    return weights


def _read(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UserError(
            f"schedule.image_weights must be a JSON file, cannot read {path}: {reason}"
        ) from None
    if not isinstance(found, dict):
        raise UserError(
            "schedule.image_weights must hold a mapping of images to weights, got "
            f"{type(found).__name__} in {path}"
        )
    return found


def _is_weight(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and value > 0
