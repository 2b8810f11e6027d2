"""Grad-CAM (arXiv:1610.02391) at the price of little more than a forward pass.

The gradient is needed at the last feature map only. Where a head pools that map, a backward pass
through the head alone gives it: behind an average pool and a linear layer it is the class's row of
weights, the closed form known as CAM. In a vision transformer it starts at the last block's first
norm, behind which attention still moves what patches hold to the class token.

A classifier's copy that looks at many batches in half the time on a CPU.

It is only looked through, never trained. So linear layers may go through oneDNN, which on some CPUs
is twice as fast as the MKL that PyTorch calls, and a network of convolutions may be recorded, with
its batch norms folded into them and its features in the memory layout that oneDNN prefers.

pytorch_grad_cam as it is: the general path, and what the fast one is measured against.

Its objects put the model into evaluation mode, overwrite its gradients, and keep a copy of every
later activation while they live, so it gets a copy of the model and is let go after each batch.
"""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn

from online_aug.saliency.maps import scaled
from online_aug.seeding import recorded, untouched


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


Call = Callable[[Tensor], Tensor]


def quick_copy(classifier: nn.Module) -> nn.Module:
    """A frozen copy in evaluation mode, for `grad_cam` alone; its maps are the same to 1e-4.

    A network that is not on a CPU, or no model of timm with a linear layer as its head, comes back
    as it is.
    """
    on_cpu = all(value.device.type == "cpu" for value in classifier.parameters())
    if not on_cpu or not pools_features(classifier):
        return classifier
    quick: Any = copy.deepcopy(classifier).eval().requires_grad_(False)
    head = quick.get_classifier()
    if type(head) is not nn.Linear:
        return classifier
    linears = [part for part in quick.modules() if type(part) is nn.Linear and part is not head]
    if linears:
        for linear in linears:
            vars(linear)["forward"] = _packed(linear)
    else:
        vars(quick)["forward_features"] = _recorded_again(quick, quick.forward_features)
    return quick  # type: ignore[no-any-return]


def _packed(linear: nn.Linear) -> Call:
    weight = linear.weight.detach().to_mkldnn()
    bias = None if linear.bias is None else linear.bias.detach().to_mkldnn()

    def forward(values: Tensor) -> Tensor:
        product: Tensor = _Product.apply(values, weight, bias)
        return product

    return forward


class _Product(torch.autograd.Function):
    """A linear layer by oneDNN, with the gradient of what goes in: a ViT's last block needs it."""

    @staticmethod
    def forward(context: Any, values: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        context.weight = weight
        return _product(values, weight, bias)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        turned = context.weight.to_dense().t().contiguous().to_mkldnn()
        return _product(gradients[0].contiguous(), turned, None), None, None


def _product(values: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    product: Tensor = torch.ops.aten.mkldnn_linear(values.to_mkldnn(), weight, bias).to_dense()
    return product


def _recorded_again(network: nn.Module, features: Call) -> Call:
    """`features`, recorded at a shape that comes again: recording costs as much as a call."""
    calls: dict[torch.Size, Call] = {}

    def call(images: Tensor) -> Tensor:
        known = calls.get(images.shape)
        calls[images.shape] = known or features
        if known is features:
            calls[images.shape] = _recorded(network, features, images)
        return calls[images.shape](images)

    return call


def _recorded(network: nn.Module, features: Call, images: Tensor) -> Call:
    call: Call = torch.jit.optimize_for_inference(recorded(_Features(network, features), (images,)))
    return call


class _Features(nn.Module):
    """What recording wants: a module of its own, with the network's weights."""

    def __init__(self, network: nn.Module, features: Call) -> None:
        super().__init__()
        self._network, self._features = network, features
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        return self._features(images)


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
