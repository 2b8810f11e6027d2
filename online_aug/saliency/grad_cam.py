"""Grad-CAM (arXiv:1610.02391) for little more than the price of a forward pass.

The gradient is only needed at the last feature map. If a head pools that map, a backward pass
through the head alone gives it: behind an average pool and a linear layer it is the class's row of
weights, the closed form known as CAM. In a vision transformer it starts at the first norm of the
last block, behind which attention still moves information from the patches to the class token. Any
other network goes through pytorch_grad_cam, which is also the reference in the tests.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from online_aug.saliency.feature_map import last_activation, pools_features
from online_aug.saliency.maps import scaled
from online_aug.seeding import recorded, untouched

Call = Callable[[Tensor], Tensor]


def grad_cam(
    classifier: nn.Module, images: Float[Tensor, "b 3 h w"], labels: Int[Tensor, " b"]
) -> Float[Tensor, "b u v"]:
    """Return maps in [0, 1] of where each image speaks for its class, at feature map resolution.

    Equal to pytorch_grad_cam at the network's last feature map (`layer4[-1]` of a ResNet,
    `blocks[-1].norm1` of a ViT; see `last_activation`) before it is enlarged; `upscaled` does
    that. If the network is not built as timm's are, pytorch_grad_cam itself makes maps of the
    images' size. Mode, gradients, buffers and random states of the classifier are restored, also
    on an error.

    Args:
        classifier: timm model, or any module with a convolution; on the images' device.
        images: Images normalised for the classifier.
        labels: Class whose evidence is shown for each image, usually its own.

    Raises:
        ValueError: If the classifier has no feature map.
    """
    if not pools_features(classifier):
        return scaled(_by_library(classifier, images, labels))
    with untouched(classifier, images.device):
        found = last_activation(classifier, images, labels)
    if found is None:
        raise _without_feature_map(classifier)
    weights = found.gradients.mean((2, 3))
    return scaled(torch.einsum("bchw,bc->bhw", found.features, weights).clamp(min=0))


def _without_feature_map(classifier: nn.Module) -> ValueError:
    kind = type(classifier).__name__
    return ValueError(f"classifier must have a feature map, {kind} has no part that makes one")


def _by_library(
    classifier: nn.Module, images: Float[Tensor, "b 3 h w"], labels: Int[Tensor, " b"]
) -> Float[Tensor, "b u v"]:
    with torch.random.fork_rng([images.device] if images.is_cuda else []), torch.enable_grad():
        spare = spare_copy(classifier)
        return library_grad_cam(spare, images, labels, _last_map(spare, images))


def _last_map(classifier: nn.Module, images: Float[Tensor, "b 3 h w"]) -> nn.Module:
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
        raise _without_feature_map(classifier)
    return found[-1]


def spare_copy(classifier: nn.Module) -> nn.Module:
    """Return a copy in evaluation mode whose parameters all require gradients."""
    return copy.deepcopy(classifier).eval().requires_grad_()


def library_grad_cam(
    classifier: nn.Module,
    images: Float[Tensor, "b 3 h w"],
    labels: Int[Tensor, " b"],
    layer: nn.Module,
    reshape: Callable[[Tensor], Tensor] | None = None,
) -> Float[Tensor, "b h w"]:
    """Return the maps of pytorch_grad_cam, in [0, 1] at the size of the images.

    The library puts the model into evaluation mode, overwrites its gradients and keeps copies of
    activations while its object lives, so give it a `spare_copy`.

    Args:
        classifier: Classifier, which is left changed.
        images: Images normalised for the classifier.
        labels: Class of each image.
        layer: Part of the classifier whose output is used.
        reshape: Converts that output to `b c u v` if it has another shape.
    """
    # Slow to import, and no trainer needs it: it brings matplotlib.
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    targets = [ClassifierOutputTarget(int(label)) for label in labels]
    with GradCAM(classifier, [layer], reshape_transform=reshape) as cam:
        maps = cam(images, targets=targets)
    return torch.from_numpy(maps).to(images.device)


def quick_copy(classifier: nn.Module) -> nn.Module:
    """Return a frozen copy that `grad_cam` runs through in half the time on a CPU.

    Its maps differ by at most 1e-4. Linear layers go through oneDNN, on some CPUs twice as fast as
    MKL; a network of convolutions is traced with batch norms folded in, in oneDNN's memory layout.
    A network on another device, or without a linear head as in timm, is returned as it is.
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
        vars(quick)["forward_features"] = _traced_on_second_call(quick, quick.forward_features)
    return quick  # type: ignore[no-any-return]


def _packed(linear: nn.Linear) -> Call:
    weight = linear.weight.detach().to_mkldnn()
    bias = None if linear.bias is None else linear.bias.detach().to_mkldnn()

    def forward(values: Tensor) -> Tensor:
        product: Tensor = _Product.apply(values, weight, bias)
        return product

    return forward


class _Product(torch.autograd.Function):
    """Linear layer by oneDNN, with the gradient of its input, which a ViT's last block needs."""

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


def _traced_on_second_call(network: nn.Module, features: Call) -> Call:
    calls: dict[torch.Size, Call] = {}

    def call(images: Tensor) -> Tensor:
        known = calls.get(images.shape)
        calls[images.shape] = known or features
        if known is features:  # the shape comes again; tracing costs as much as a call
            calls[images.shape] = _traced(network, features, images)
        return calls[images.shape](images)

    return call


def _traced(network: nn.Module, features: Call, images: Tensor) -> Call:
    call: Call = torch.jit.optimize_for_inference(recorded(_Features(network, features), (images,)))
    return call


class _Features(nn.Module):
    """Module that `torch.jit.trace` can trace: the body of a network with its weights."""

    def __init__(self, network: nn.Module, features: Call) -> None:
        super().__init__()
        self._network, self._features = network, features
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        return self._features(images)
