"""A classifier as a folder that timm loads: `model.safetensors` beside `config.json`.

`config.json` is in timm's format of the Hugging Face hub. It holds all that a prediction needs
beside the weights: architecture, class names, input statistics, and the part of an image that the
classifier sees.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError
from torch import nn

from online_aug.classifier.class_names import MODEL_FILE, check_class_names, class_names_in
from online_aug.classifier.model import build_classifier, input_statistics, sees_one_size
from online_aug.config.training import ClassifierConfig
from online_aug.data.settings import DataConfig
from online_aug.data.transforms import Frame, Resize
from online_aug.documents import DocumentError, parse_json, read_text
from online_aug.errors import UserError
from online_aug.files import write_atomically
from online_aug.settings import Channels, Deviations, Pixels

HUB_CONFIG_FILE = "config.json"
_MAX_CONFIG_BYTES = 16 * 2**20
"""Room for the names of about a quarter of a million classes."""
_CropMode = Literal["squash", "center", "border"]
_CROP_MODES: dict[Resize, _CropMode] = {
    "squash": "squash",
    "shortest": "center",
    "longest": "border",
}
"""timm's word for each of `data.resize`."""


@dataclass(frozen=True, kw_only=True)
class HubModel:
    """A classifier from a folder, ready to predict, on the CPU."""

    network: nn.Module
    class_names: tuple[str, ...]
    frame: Frame
    """The part of an image that it sees."""


class _Input(BaseModel):
    input_size: tuple[Literal[3], Pixels, Pixels]
    crop_pct: Annotated[float, Field(gt=0, le=1)]
    crop_mode: _CropMode
    interpolation: Literal["bilinear"]
    mean: Channels
    std: Deviations


class _HubConfig(BaseModel):
    architecture: str
    label_names: Annotated[tuple[str, ...], Field(min_length=1)]
    pretrained_cfg: _Input


def write_hub_config(folder: Path, classifier: Any, data: DataConfig) -> None:
    """Write `config.json`, with which timm and `read_hub_model` load the weights beside it.

    Args:
        folder: Folder of the weights, which name their classes.
        classifier: A model of timm.
        data: How images are cut for evaluation.
    """
    names = class_names_in(folder / MODEL_FILE)
    assert names, "exported weights name their classes"
    content = _hub_config(classifier, data, names)
    write_atomically(
        folder / HUB_CONFIG_FILE, json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    )


def _hub_config(classifier: Any, data: DataConfig, class_names: Sequence[str]) -> dict[str, Any]:
    cfg, size = classifier.pretrained_cfg, data.image_size
    mean, std = input_statistics(classifier)
    is_fixed = sees_one_size(cfg["architecture"])
    return {
        "architecture": cfg["architecture"],
        "num_classes": len(class_names),
        "num_features": classifier.num_features,
        "label_names": list(class_names),
        **({"model_args": {"img_size": size}} if is_fixed else {}),
        "pretrained_cfg": {
            "tag": "online_aug",
            "custom_load": False,
            "input_size": [3, size, size],
            "fixed_input_size": is_fixed,
            "interpolation": "bilinear",
            "crop_pct": _crop_share(size, data.resize_px or size),
            "crop_mode": _CROP_MODES[data.resize],
            "mean": list(mean),
            "std": list(std),
            "num_classes": len(class_names),
            "pool_size": None,
            "first_conv": cfg.get("first_conv"),
            "classifier": cfg.get("classifier"),
        },
    }


def _crop_share(size: int, resize_px: int) -> float:
    share = size / resize_px
    while math.floor(size / share) < resize_px:  # timm rounds down
        share = math.nextafter(share, 0)
    return share


def read_hub_model(folder: Path, name: str = "RUN") -> HubModel:
    """Read a classifier that a run has left, or that was published.

    Args:
        folder: Holds `model.safetensors` and `config.json`.
        name: Name of the argument, for error messages.

    Raises:
        UserError: If one of the two is missing, cannot be used, or does not fit the other.
    """
    check_hub_folder(folder, name)
    file, weights = folder / HUB_CONFIG_FILE, folder / MODEL_FILE
    config = _read_config(file)
    shown = config.pretrained_cfg
    if shown.input_size[1] != shown.input_size[2]:
        raise UserError(f"{file} must be of square images, got {shown.input_size}")
    size = shown.input_size[1]
    check_class_names(weights, name, config.label_names)
    network = build_classifier(
        ClassifierConfig(
            name=config.architecture, checkpoint=weights, mean=shown.mean, std=shown.std
        ),
        len(config.label_names),
        image_size=size,
        key=name,
        needs_head=True,
    )
    resize = next(ours for ours, timms in _CROP_MODES.items() if timms == shown.crop_mode)
    frame = Frame(size=size, resize=resize, resize_px=math.floor(size / shown.crop_pct))
    return HubModel(network=network, class_names=config.label_names, frame=frame)


def check_hub_folder(folder: Path, name: str = "RUN") -> None:
    """Raise a `UserError` if a folder lacks the weights of a finished run or their description."""
    if not folder.is_dir():
        raise UserError(f"{name} must be a run directory or a published folder, got {folder}")
    for file in (MODEL_FILE, HUB_CONFIG_FILE):
        if not (folder / file).is_file():
            raise UserError(
                f"{name} must be a finished run or a published folder, {folder} has no {file}: "
                "the command that trains it writes it at its end"
            )


def _read_config(file: Path) -> _HubConfig:
    try:
        values = parse_json(read_text(file, limit=_MAX_CONFIG_BYTES))
        return _HubConfig.model_validate(values)
    except DocumentError as error:
        raise UserError(f"{file} must be timm's description of a model: {error}") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise UserError(
            f"{file} must be what a finished run writes, {place} is not: {first['msg']}"
        ) from None
