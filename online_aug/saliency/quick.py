"""A classifier's copy that looks at many batches in half the time on a CPU.

It is only looked through, never trained. So linear layers may go through oneDNN, which on some CPUs
is twice as fast as the MKL that PyTorch calls, and a network of convolutions may be recorded, with
its batch norms folded into them and its features in the memory layout that oneDNN prefers.
"""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from online_aug.saliency.cam import pools_features

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
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of values that are constant: the shapes
        traced = torch.jit.trace(_Features(network, features), images, check_trace=False)
        call: Call = torch.jit.optimize_for_inference(torch.jit.freeze(traced))
    return call


class _Features(nn.Module):
    """What recording wants: a module of its own, with the network's weights."""

    def __init__(self, network: nn.Module, features: Call) -> None:
        super().__init__()
        self._network, self._features = network, features
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        return self._features(images)
