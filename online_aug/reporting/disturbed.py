"""Disturbed images for a classifier: adversarial noise and common corruptions.

FGSM (arXiv:1412.6572) and PGD (arXiv:1706.06083) follow the classifier's own gradient. The
corruptions are in the manner of ImageNet-C (arXiv:1903.12261), our own small ones.
"""

from collections.abc import Callable, Mapping

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as transforms

from online_aug.classifier.model import input_statistics
from online_aug.console import open_side_console, progress
from online_aug.data.image_sets import ImageSet, ordered_batches
from online_aug.data.settings import DataConfig
from online_aug.data.transforms import eval_transform
from online_aug.seeding import torch_rng

Images = UInt8[Tensor, "b 3 s s"]
Disturb = Callable[[nn.Module, Images, Int[Tensor, " b"]], Float[Tensor, "b 3 s s"]]
"""Disturbs images, given the classifier and the true labels; grey levels from 0 to 255."""
PGD_STEPS, PGD_REACH = 10, 2.5
"""Steps of PGD, and how far they would go together in units of the largest change."""
_AT_A_TIME = 64


def _noise(images: Images, severity: int) -> Images:
    noise = torch.randn(images.shape, generator=torch_rng(severity)) * (8, 16, 32)[severity]
    return _bytes(images.float() + noise)


def _blur(images: Images, severity: int) -> Images:
    sigma = images.shape[-1] * (0.015, 0.03, 0.06)[severity]
    blurred: Tensor = transforms.gaussian_blur(images, [2 * int(3 * sigma) + 1] * 2, [sigma] * 2)
    return blurred


def _contrast(images: Images, severity: int) -> Images:
    changed: Tensor = transforms.adjust_contrast(images, (0.6, 0.4, 0.2)[severity])
    return changed


def _brightness(images: Images, severity: int) -> Images:
    return _bytes(images.float() + (32, 64, 96)[severity])


def _pixels(images: Images, severity: int) -> Images:
    side = images.shape[-1]
    small = transforms.resize(images, [max(4, int(side * (0.6, 0.4, 0.25)[severity]))] * 2)
    large: Tensor = transforms.resize(
        small, [side] * 2, interpolation=transforms.InterpolationMode.NEAREST
    )
    return large


def _rgb(decoded: np.ndarray | None) -> np.ndarray:
    assert decoded is not None  # it was encoded here
    return decoded[..., ::-1]


def _jpeg(images: Images, severity: int) -> Images:
    quality = [cv2.IMWRITE_JPEG_QUALITY, (40, 20, 8)[severity]]
    coded = []
    for image in images.permute(0, 2, 3, 1).numpy():
        _, content = cv2.imencode(".jpg", np.ascontiguousarray(image[..., ::-1]), quality)
        coded.append(np.ascontiguousarray(_rgb(cv2.imdecode(content, cv2.IMREAD_COLOR))))
    return torch.from_numpy(np.stack(coded)).permute(0, 3, 1, 2)


CORRUPTIONS: Mapping[str, Callable[[Images, int], Images]] = {
    "noise": _noise,
    "blur": _blur,
    "contrast": _contrast,
    "brightness": _brightness,
    "pixels": _pixels,
    "JPEG": _jpeg,
}
"""The corruptions of an image, at severities 0, 1 and 2."""
SEVERITIES = 3


def fgsm(
    classifier: nn.Module, images: Images, labels: Int[Tensor, " b"], epsilon: float
) -> Float[Tensor, "b 3 s s"]:
    """Move every pixel by `epsilon` grey levels of 255 in the direction that raises the loss."""
    parts = zip(images.split(_AT_A_TIME), labels.split(_AT_A_TIME), strict=True)
    moved = [
        some + epsilon * _gradient(classifier, some.float(), truth).sign() for some, truth in parts
    ]
    return torch.cat(moved).clamp(0, 255)


def pgd(
    classifier: nn.Module, images: Images, labels: Int[Tensor, " b"], epsilon: float
) -> Float[Tensor, "b 3 s s"]:
    """Climb the loss in ten steps from a random start, at most `epsilon` grey levels away."""
    step, rng = PGD_REACH * epsilon / PGD_STEPS, torch_rng(0)
    moved = []
    for some, truth in zip(images.split(_AT_A_TIME), labels.split(_AT_A_TIME), strict=True):
        clean = some.float()
        start = torch.rand(some.shape, generator=rng).to(some.device)
        found = (clean + epsilon * (2 * start - 1)).clamp(0, 255)
        for _ in range(PGD_STEPS):
            found = found + step * _gradient(classifier, found, truth).sign()
            found = found.clamp(clean - epsilon, clean + epsilon).clamp(0, 255)
        moved.append(found)
    return torch.cat(moved)


ATTACKS = {"fgsm": fgsm, "pgd": pgd}


def attack(name: str, epsilon: float) -> Disturb:
    """Return an attack of `ATTACKS` whose largest change is `epsilon` grey levels of 255."""
    return lambda classifier, images, labels: ATTACKS[name](classifier, images, labels, epsilon)


def corruption(name: str, severity: int) -> Disturb:
    """Return a corruption of `CORRUPTIONS` at a severity from 0 on."""
    return lambda _, images, __: CORRUPTIONS[name](images.cpu(), severity).float().to(images.device)


def accuracies(
    classifier: nn.Module,
    images: ImageSet,
    data: DataConfig,
    device: torch.device,
    disturbances: Mapping[str, Disturb],
) -> dict[str, float]:
    """Return the share of images that are still recognised under each disturbance.

    Args:
        classifier: On the device, in evaluation mode.
        images: Those to disturb, after the transform of evaluation.
        data: How images are transformed, and whether unreadable ones are left out.
        device: Where to compute.
        disturbances: The disturbances by name.
    """
    skips = data.on_bad_image == "skip"
    batches = ordered_batches(images, eval_transform(data), 256, skips_bad_images=skips)
    truth = torch.from_numpy(np.asarray(images.labels)).long()
    right = dict.fromkeys(disturbances, 0)
    with progress("disturbing images", len(images), console=open_side_console()) as tally:
        for batch, places in batches:
            shown, labels = batch.to(device), truth[places].to(device)
            for name, disturb in disturbances.items():
                right[name] += hits(classifier, disturb(classifier, shown, labels), labels)
            tally.advance(len(labels))
    return {name: count / max(1, tally.done) for name, count in right.items()}


@torch.no_grad()
def hits(classifier: nn.Module, images: Float[Tensor, "b 3 s s"], labels: Int[Tensor, " b"]) -> int:
    """Return how many images are recognised; pixels are grey levels from 0 to 255."""
    parts = zip(images.split(256), labels.split(256), strict=True)
    return sum(int((logits_of(classifier, some).argmax(1) == own).sum()) for some, own in parts)


def logits_of(classifier: nn.Module, pixels: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b k"]:
    """Return the logits for pixels from 0 to 255, through which gradients flow."""
    mean, std = (
        torch.tensor(values, device=pixels.device).view(1, 3, 1, 1)
        for values in input_statistics(classifier)
    )
    logits: Tensor = classifier((pixels / 255 - mean) / std)
    return logits


def _gradient(
    classifier: nn.Module, pixels: Float[Tensor, "b 3 s s"], labels: Int[Tensor, " b"]
) -> Float[Tensor, "b 3 s s"]:
    shown = pixels.detach().requires_grad_()
    loss = F.cross_entropy(logits_of(classifier, shown), labels, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, shown)
    return gradient


def _bytes(images: Float[Tensor, "b 3 s s"]) -> Images:
    return images.round().clamp(0, 255).to(torch.uint8)
