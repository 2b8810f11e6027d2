"""pytorch_grad_cam as it is: the general path, and what the fast one is measured against.

Its objects put the model into evaluation mode, overwrite its gradients, and keep a copy of every
later activation while they live, so it gets a copy of the model and is let go after each batch.
"""

import copy
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn


def spare_copy(classifier: nn.Module) -> nn.Module:
    """A copy in evaluation mode whose parameters all take gradients, as the library needs."""
    return copy.deepcopy(classifier).eval().requires_grad_()


def library_grad_cam(
    classifier: nn.Module,
    images: Float[Tensor, "b 3 h w"],
    labels: Int[Tensor, " b"],
    layer: nn.Module,
    reshape: Callable[[Tensor], Tensor] | None = None,
) -> Float[Tensor, "b h w"]:
    """The library's maps, from 0 to 1, at the size of the images.

    Args:
        classifier: Is left changed.
        images: Normalised for the classifier.
        labels: The class of each image.
        layer: The part of the classifier whose output is looked at.
        reshape: From that output to `b c u v` where it has another shape.
    """
    targets = [ClassifierOutputTarget(int(label)) for label in labels]
    with GradCAM(classifier, [layer], reshape_transform=reshape) as cam:
        maps = cam(images, targets=targets)
    return torch.from_numpy(maps).to(images.device)
