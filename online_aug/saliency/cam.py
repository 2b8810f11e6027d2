"""Grad-CAM (arXiv:1610.02391) at the price of little more than a forward pass.

The gradient is needed at the last feature map only. Where a head pools that map, a backward pass
through the head alone gives it: behind an average pool and a linear layer it is the class's row of
weights, the closed form known as CAM. In a vision transformer it starts at the last block's first
norm, behind which attention still moves what patches hold to the class token.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from online_aug.module_state import untouched
from online_aug.saliency.maps import scaled


def grad_cam(
    classifier: nn.Module, images: Float[Tensor, "b 3 h w"], labels: Int[Tensor, " b"]
) -> Float[Tensor, "b u v"]:
    """Where each image speaks for its class: maps from 0 to 1 at the size of the feature map.

    (A network that is neither a convolutional one of timm nor a ViT goes through pytorch_grad_cam,
    in full, and its maps have the size of the images.)

    Equal to `pytorch_grad_cam` at the classifier's last feature map (`layer4[-1]` of a ResNet,
    `blocks[-1].norm1` of a ViT) before it is enlarged; `upscaled` does that. Mode, gradients,
    buffers and random states of the classifier stay what they were, also on an error.

    Args:
        classifier: A timm model, or any module with a convolution in it; on the images' device.
        images: Normalised for the classifier.
        labels: The class whose evidence is shown, such as the image's own.
    """
    if _is_vision_transformer(classifier):
        with untouched(classifier, images.device):
            return _weighted(*_at_last_block(classifier, images, labels))
    with untouched(classifier, images.device):
        found = _at_pooled_features(classifier, images, labels)
    return scaled(_by_library(classifier, images, labels)) if found is None else _weighted(*found)


def pools_features(classifier: nn.Module) -> bool:
    """It has a body and a head, as the models of timm do."""
    return hasattr(classifier, "forward_features") and hasattr(classifier, "forward_head")


class _Taken(NamedTuple):
    """One layer's output and the gradient of the classes' logits there."""

    features: Float[Tensor, "b c u v"]
    gradients: Float[Tensor, "b c u v"]


def _weighted(
    features: Float[Tensor, "b c u v"], gradients: Float[Tensor, "b c u v"]
) -> Float[Tensor, "b u v"]:
    weights = gradients.mean((2, 3))
    return scaled(torch.einsum("bchw,bc->bhw", features, weights).clamp(min=0))


def _at_pooled_features(
    classifier: Any, images: Float[Tensor, "b 3 h w"], labels: Int[Tensor, " b"]
) -> _Taken | None:
    """At what the head pools; None where the classifier has no such map."""
    if not pools_features(classifier):
        return None
    features = classifier.forward_features(images)
    if not isinstance(features, Tensor) or features.ndim != 4:
        return None
    with torch.enable_grad():
        leaf = features.detach().requires_grad_()
        gradients = _gradient(classifier.forward_head(leaf), labels, leaf)
    if getattr(classifier, "output_fmt", "NCHW") == "NHWC":
        return _Taken(features.permute(0, 3, 1, 2), gradients.permute(0, 3, 1, 2))
    return _Taken(features, gradients)


def _is_vision_transformer(classifier: Any) -> bool:
    blocks = getattr(classifier, "blocks", None) or [None]
    patch_embed = getattr(classifier, "patch_embed", None)
    return hasattr(patch_embed, "dynamic_feat_size") and hasattr(blocks[-1], "norm1")


def _at_last_block(
    classifier: Any, images: Float[Tensor, "b 3 h w"], labels: Int[Tensor, " b"]
) -> _Taken:
    leaves = []

    def start_graph(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        torch.set_grad_enabled(True)  # until `untouched` ends
        leaves.append(output.detach().requires_grad_())
        return leaves[-1]

    hook = classifier.blocks[-1].norm1.register_forward_hook(start_graph)
    try:
        logits = classifier(images)
    finally:
        hook.remove()
    (leaf,) = leaves
    height, width = classifier.patch_embed.dynamic_feat_size(images.shape[2:])
    tokens = (leaf.detach(), _gradient(logits, labels, leaf))
    patches = (part[:, -height * width :] for part in tokens)  # behind class and register tokens
    return _Taken(*(part.transpose(1, 2).unflatten(2, (height, width)) for part in patches))


def _gradient(logits: Float[Tensor, "b k"], labels: Int[Tensor, " b"], leaf: Tensor) -> Tensor:
    chosen = logits.gather(1, labels.view(-1, 1)).sum()
    return torch.autograd.grad(chosen, leaf)[0]


def _by_library(
    classifier: nn.Module, images: Float[Tensor, "b 3 h w"], labels: Int[Tensor, " b"]
) -> Float[Tensor, "b u v"]:
    """Any other network, by pytorch_grad_cam on a copy, which it leaves changed."""
    from online_aug.saliency.reference import library_grad_cam, spare_copy

    with torch.random.fork_rng([images.device] if images.is_cuda else []), torch.enable_grad():
        copy = spare_copy(classifier)
        return library_grad_cam(copy, images, labels, _last_map(copy, images))


def _last_map(classifier: nn.Module, images: Float[Tensor, "b 3 h w"]) -> nn.Module:
    """The part whose output is the last one with height and width."""
    found: list[nn.Module] = []

    def note(module: nn.Module, _inputs: object, output: object) -> None:
        if isinstance(output, Tensor) and output.ndim == 4 and min(output.shape[2:]) > 1:
            found.append(module)

    leaves = [part for part in classifier.modules() if not list(part.children())]
    hooks = [part.register_forward_hook(note) for part in leaves]
    try:
        with torch.no_grad():
            classifier(images[:1])
    finally:
        for hook in hooks:
            hook.remove()
    if not found:
        kind = type(classifier).__name__
        raise ValueError(f"classifier must have a feature map, {kind} has no part that makes one")
    return found[-1]
