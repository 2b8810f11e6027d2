"""The last feature map of a network and the gradient of some logits there.

It is found by structure, not by a list of names: between the body and the head of a timm model, or,
if the head reads nothing but a class token, behind the last norm whose patches still decide the
logits. The gradient only runs from there to the logits.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

_MOST_OTHER_TOKENS = 16
"""Class and register tokens that a network may have beside those of its patches."""


class Activation(NamedTuple):
    """The output of one layer and the gradient of the chosen logits there."""

    features: Float[Tensor, "b c u v"]
    gradients: Float[Tensor, "b c u v"]


def last_activation(
    classifier: Any, images: Float[Tensor, "b 3 h w"], labels: Int[Tensor, " b"]
) -> Activation | None:
    """Return the last feature map that decides the logits; None if no part has one.

    Args:
        classifier: Model in evaluation mode; gradients are recorded only where they are needed.
        images: Images normalised for the classifier.
        labels: Class of each image whose logit is derived.
    """
    if _has_patch_blocks(classifier):
        return _behind(classifier.blocks[-1].norm1, classifier, images, labels)
    if not pools_features(classifier):
        return None
    features = classifier.forward_features(images)
    to_map = _mapping(classifier, features, images)
    if to_map is not None and (features.ndim == 4 or _reads_patches(classifier, features, to_map)):
        with torch.enable_grad():
            leaf = features.detach().requires_grad_()
            gradients = _gradient(classifier.forward_head(leaf), labels, leaf)
        return Activation(to_map(features), to_map(gradients))
    if isinstance(features, Tensor) and features.ndim == 4:
        return None
    norm = _last_used_norm(classifier, images[:1])
    return None if norm is None else _behind(norm, classifier, images, labels)


def _reads_patches(classifier: Any, tokens: Tensor, to_map: Callable[[Tensor], Tensor]) -> bool:
    """Return whether a head pools the patches; else it reads only a class token."""
    with torch.enable_grad():
        leaf = tokens[:1].detach().requires_grad_()
        mixed = _mixed(classifier.forward_head(leaf, pre_logits=True))
    return bool(to_map(torch.autograd.grad(mixed, leaf)[0]).any())


def _mixed(pooled: Any) -> Tensor:
    """Return a number that depends on all pooled features: unlike logits, whatever the weights."""
    parts = pooled if isinstance(pooled, tuple | list) else (pooled,)
    weighted = (part * torch.linspace(1, 2, part.shape[-1], device=part.device) for part in parts)
    return torch.stack([part.sum() for part in weighted]).sum()


def pools_features(classifier: nn.Module) -> bool:
    """Return whether a classifier has a body and a head, as timm's models do."""
    return hasattr(classifier, "forward_features") and hasattr(classifier, "forward_head")


def _has_patch_blocks(classifier: Any) -> bool:
    """Return whether a network is a row of blocks on tokens, with a norm at the start of each."""
    blocks = getattr(classifier, "blocks", None)
    has_tokens = hasattr(classifier, "num_prefix_tokens") or hasattr(classifier, "cls_token")
    return (
        has_tokens
        and isinstance(blocks, nn.Sequential | nn.ModuleList)
        and hasattr(getattr(classifier, "patch_embed", None), "dynamic_feat_size")
        and hasattr(blocks[-1], "norm1")
    )


def _behind(
    layer: nn.Module, classifier: nn.Module, images: Tensor, labels: Tensor
) -> Activation | None:
    leaves: list[Tensor] = []

    def start_graph(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        torch.set_grad_enabled(True)
        leaves.append(output.detach().requires_grad_())
        return leaves[-1].clone()  # what comes next may write into it

    with torch.no_grad(), _hooked([layer], start_graph):
        logits = classifier(images)
        gradients = _gradient(logits, labels, leaves[-1])
    to_map = _mapping(classifier, leaves[-1], images)
    if to_map is None:
        return None
    return Activation(to_map(leaves[-1].detach()), to_map(gradients))


def _last_used_norm(classifier: Any, image: Tensor) -> nn.Module | None:
    found: list[tuple[nn.Module, Tensor]] = []

    def note(module: nn.Module, _inputs: object, output: Tensor) -> None:
        if isinstance(output, Tensor) and output.requires_grad:
            found.append((module, output))

    norms = [part for part in classifier.modules() if "Norm" in type(part).__name__]
    with torch.enable_grad(), _hooked(norms, note):
        features = classifier.forward_features(image.detach().requires_grad_())
        mixed = _mixed(classifier.forward_head(features, pre_logits=True))
    outputs = [output for _, output in found]
    gradients = torch.autograd.grad(mixed, outputs, allow_unused=True) if outputs else ()
    for (module, output), gradient in zip(reversed(found), reversed(gradients), strict=True):
        to_map = _mapping(classifier, output, image)
        if gradient is not None and to_map is not None and to_map(gradient).any():
            return module
    return None


@contextmanager
def _hooked(layers: list[nn.Module], hook: Callable[..., Any]) -> Iterator[None]:
    handles = [layer.register_forward_hook(hook) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _mapping(classifier: Any, values: Any, images: Tensor) -> Callable[[Tensor], Tensor] | None:
    """Return how values of this shape become `b c u v`; None if they are no map."""
    if not isinstance(values, Tensor) or len(values) != len(images):
        return None
    to_map: Callable[[Tensor], Tensor]
    if values.ndim == 4 and _has_channels_last(classifier, values):
        size, to_map = values.shape[1:3], _from_channels_last
    elif values.ndim == 4:
        size, to_map = values.shape[2:], _as_it_is
    elif values.ndim == 3 and (grid := _grid(classifier, values.shape[1], images)):
        size, to_map = torch.Size(grid), _from_tokens(grid)
    else:
        return None
    return to_map if min(size) > 1 else None


def _as_it_is(values: Tensor) -> Tensor:
    return values


def _from_channels_last(values: Tensor) -> Tensor:
    return values.permute(0, 3, 1, 2)


def _from_tokens(grid: tuple[int, int]) -> Callable[[Tensor], Tensor]:
    """Leave out class and register tokens, which come first."""
    return lambda tokens: tokens[:, -math.prod(grid) :].transpose(1, 2).unflatten(2, grid)


def _has_channels_last(classifier: Any, values: Tensor) -> bool:
    _, first, second, third = values.shape
    if (first == second) != (second == third):  # of square images, and not as many channels
        return first == second
    return getattr(classifier, "output_fmt", "NCHW") == "NHWC"


def _grid(classifier: Any, tokens: int, images: Tensor) -> tuple[int, int] | None:
    """Return height and width of the grid of patches among some tokens; None if there is none."""
    stages = getattr(classifier, "feature_info", None) or [{}]
    stride = dict(stages[-1]).get("reduction")
    if stride:
        height, width = (math.ceil(side / stride) for side in images.shape[2:])
        if 0 <= tokens - height * width <= _MOST_OTHER_TOKENS:
            return height, width
    side = math.isqrt(tokens)
    is_square = images.shape[2] == images.shape[3] and tokens - side**2 <= _MOST_OTHER_TOKENS
    return (side, side) if is_square else None


def _gradient(logits: Tensor, labels: Tensor, leaf: Tensor) -> Tensor:
    chosen = logits.gather(1, labels.view(-1, 1)).sum()
    return torch.autograd.grad(chosen, leaf)[0]
