"""How a network is called: step by step from Python, recorded and replayed, or compiled.

The shape of a call is the same at every tick, so that the work of finding out what to compute can
be done once. On a CPU a third of the time of a small network is spent on just that.
"""

import warnings
from collections.abc import Callable
from typing import Literal, TypeAlias

import torch
from diffusers import UNet2DConditionModel
from jaxtyping import Float
from torch import Tensor, nn

Execution = Literal["eager", "graph", "compile"]
Call: TypeAlias = Callable[..., Tensor]
_WARM_UP_CALLS = 3


def chosen_execution(wanted: Literal["auto"] | Execution, device: torch.device) -> Execution:
    """`auto` records on a CPU; on a GPU a call over all slots hides what Python does meanwhile."""
    if wanted != "auto":
        return wanted
    return "graph" if device.type == "cpu" else "eager"


class Network:
    """A U-Net whose calls are recorded at each shape they have."""

    def __init__(self, unet: UNet2DConditionModel, execution: Execution) -> None:
        """Take a U-Net on its device; recorded calls keep its weights as they are then."""
        self._plain = _Plain(unet).eval()
        self._execution = execution
        self._calls: dict[tuple[torch.Size, ...], Call] = {}

    @torch.no_grad()
    def __call__(
        self,
        latents: Float[Tensor, "b c h w"],
        timesteps: Float[Tensor, " b"],
        prompts: Float[Tensor, "b t d"],
        scales: Float[Tensor, "b e"] | None,
    ) -> Float[Tensor, "b c2 h w"]:
        """What the network predicts; `scales` embed the guidance of a distilled model."""
        inputs = (latents, timesteps, prompts, *([] if scales is None else [scales]))
        shapes = tuple(tensor.shape for tensor in inputs)
        if shapes not in self._calls:
            self._calls[shapes] = self._prepared(inputs)
        return self._calls[shapes](*inputs)

    def forget(self) -> None:
        """Free what recordings hold of the device's memory."""
        self._calls.clear()

    def _prepared(self, inputs: tuple[Tensor, ...]) -> Call:
        if self._execution == "eager":
            return self._plain
        if self._execution == "compile":
            return torch.compile(self._plain, dynamic=False)
        if inputs[0].device.type == "cuda":
            return _CudaGraph(self._plain, inputs)
        return _recorded(self._plain, inputs)


class _Plain(nn.Module):
    """Tensors in, one tensor out, as recording and compiling want it."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self._unet = unet

    def forward(
        self, latents: Tensor, timesteps: Tensor, prompts: Tensor, scales: Tensor | None = None
    ) -> Tensor:
        predicted: Tensor = self._unet(
            latents,
            timesteps,
            encoder_hidden_states=prompts,
            timestep_cond=scales,
            return_dict=False,
        )[0]
        return predicted


def _recorded(network: nn.Module, inputs: tuple[Tensor, ...]) -> Call:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of values that are constant: the shapes
        traced = torch.jit.trace(network, inputs, check_trace=False)
        call: Call = torch.jit.freeze(traced)
    return call


class _CudaGraph:
    """Kernels of one call, launched again as a whole; inputs and output keep their places."""

    def __init__(self, network: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._inputs = [tensor.clone() for tensor in inputs]
        side = torch.cuda.Stream(inputs[0].device)
        side.wait_stream(torch.cuda.current_stream(inputs[0].device))
        with torch.cuda.stream(side):
            for _ in range(_WARM_UP_CALLS):  # libraries choose their kernels, which is not recorded
                network(*self._inputs)
        torch.cuda.current_stream(inputs[0].device).wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        # Other threads encode and decode meanwhile, on streams of their own.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._output: Tensor = network(*self._inputs)

    def __call__(self, *inputs: Tensor) -> Tensor:
        for place, tensor in zip(self._inputs, inputs, strict=True):
            place.copy_(tensor)
        self._graph.replay()
        return self._output.clone()
