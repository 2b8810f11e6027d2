"""The models that look at training images: a classifier as the teacher, or a segmenter."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from online_aug.classifier.model import (
    REFUSALS,
    build_classifier,
    check_name,
    create,
    input_statistics,
    sees_one_size,
)
from online_aug.data.transforms import normalise
from online_aug.diffusion.directory import fetch
from online_aug.errors import UserError, first_line, one_line
from online_aug.saliency import grad_cam, quick_copy
from online_aug.saliency.segmenter import Segmenter, load_segmenter
from online_aug.seeding import torch_global_state

if TYPE_CHECKING:
    from online_aug.experiment.experiment import Experiment

Look = Callable[[UInt8[Tensor, "b 3 s s"], Int[Tensor, " b"]], Float[Tensor, "b u v"]]
"""From uint8 images and their classes to maps in [0, 1]."""
_A_SEGMENTER = (
    "a directory with a model for semantic segmentation or mask generation in transformers' "
    "format, an ONNX file of U2-Net's form"
)


def gaze_of(classifier: nn.Module, device: torch.device | str) -> Look:
    """Return Grad-CAM of a classifier with its present weights; the classifier is not changed."""
    mean, std = input_statistics(classifier)
    looking = quick_copy(classifier)

    def look(images: UInt8[Tensor, "b 3 s s"], labels: Int[Tensor, " b"]) -> Tensor:
        return grad_cam(looking, normalise(images.to(device), mean, std), labels.to(device))

    return look


def check_classifier_looks(experiment: "Experiment") -> None:
    """Refuse a classifier in training that cannot look at images as configured.

    Raises:
        UserError: If it cannot look at images of `saliency.image_size`, or another is named.
    """
    config = experiment.config
    if config.saliency.name is not None:
        raise UserError(
            "saliency.name must be null where saliency.teacher is the classifier being trained, "
            f"got {config.saliency.name!r}"
        )
    is_other_size = experiment.saliency.teacher_size != config.data.image_size
    if is_other_size and sees_one_size(config.classifier.name):
        raise UserError(
            f"saliency.image_size must be null or {config.data.image_size}, the one size that "
            f"{config.classifier.name} takes (data.image_size), got "
            f"{experiment.saliency.teacher_size}"
        )
    check_view(experiment)


def check_view(experiment: "Experiment") -> None:
    """Refuse a classifier of which Grad-CAM cannot be made, by trying.

    Raises:
        UserError: If no map can be made.
    """
    side = experiment.saliency.teacher_size
    bare: dict[str, object] = {"pretrained": False, "checkpoint": None}
    settings = experiment.saliency.teacher_settings.model_copy(update=bare)
    problem = ""
    for device in ("meta", "cpu"):  # only some networks need values for it
        try:
            with torch.device(device), torch_global_state(0):
                images = torch.linspace(-1, 1, 2 * 3 * side**2).view(2, 3, side, side)
                network = create(settings, len(experiment.splits.train.class_names), side)
                grad_cam(network, images, torch.tensor([0, 0]))
        except (*REFUSALS, LookupError, NotImplementedError) as error:
            problem = first_line(error)
        else:
            return
    raise UserError(
        f"saliency.method must be another than grad_cam for {settings.name} at {side} px, of "
        f"which no map can be made: {problem}"
    )


def build_teacher(experiment: "Experiment") -> nn.Module:
    """Build the model whose weights `saliency.teacher` names, on the CPU.

    Raises:
        UserError: As `check_saliency`.
    """
    config = experiment.config
    if config.saliency.name is not None:
        check_name(config.saliency.name, "saliency.name")
    return build_classifier(
        experiment.saliency.teacher_settings,
        len(experiment.splits.train.class_names),
        image_size=experiment.saliency.teacher_size,
        key="saliency.teacher",
        needs_head=True,
    )


def find_segmenter(name: str) -> Path:
    """Return the directory or ONNX file of a segmenter; fetch it if it is a name of the hub.

    Raises:
        UserError: If there is none.
    """
    path = Path(name).expanduser()
    return (
        path
        if path.exists()
        else fetch("saliency.segmenter", _A_SEGMENTER, name, lambda: _downloaded(name))
    )


def build_segmenter(experiment: "Experiment") -> Segmenter:
    """Load the model that `saliency.segmenter` names.

    Raises:
        UserError: If it cannot be loaded, or is a model for something else.
    """
    path, size = experiment.saliency.segmenter, experiment.config.saliency.image_size
    try:
        return load_segmenter(path, experiment.device, size)
    except Exception as error:  # whatever a foreign model makes transformers or ONNX raise
        raise UserError(
            f"saliency.segmenter must be {_A_SEGMENTER}, got {path}: {one_line(error)}"
        ) from error


def _downloaded(name: str) -> str:
    from huggingface_hub import snapshot_download  # slow to import, rarely needed

    return str(snapshot_download(name, allow_patterns=["*.json", "*.safetensors"]))
