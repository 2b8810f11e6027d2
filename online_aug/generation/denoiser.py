"""The U-Net with classifier-free guidance, every image of a batch at its own time and scales.

How a network is called: step by step from Python, recorded and replayed, or compiled.

The shape of a call is the same at every tick, so that the work of finding out what to compute can
be done once. On a CPU a third of the time of a small network is spent on just that.
"""

import warnings
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from diffusers import StableDiffusionInstructPix2PixPipeline, UNet2DConditionModel
from jaxtyping import Float
from torch import Tensor, nn

from online_aug.diffusion.loading import Pipeline

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


class Conditions(NamedTuple):
    """What steers each of s images."""

    prompt: Float[Tensor, "s t d"]
    source: Float[Tensor, "s c h w"] | None
    """Latents of the source, which an InstructPix2Pix reads beside the noisy ones."""
    guidance_scale: Float[Tensor, " s"]
    image_guidance_scale: Float[Tensor, " s"]


class Denoiser:
    """One call of the network an image and step, whatever its guidance takes."""

    def __init__(
        self,
        pipeline: Pipeline,
        empty_prompt: Float[Tensor, "t d"],
        execution: Execution = "eager",
    ) -> None:
        """Take a pipeline's U-Net, already on its device.

        Args:
            pipeline: Of either kind.
            empty_prompt: Embedding of the empty prompt, from which guidance leads away.
            execution: How the network is called.
        """
        self._dtype = pipeline.unet.dtype
        self._network = Network(pipeline.unet, execution)
        self._empty_prompt = empty_prompt
        self._edits = isinstance(pipeline, StableDiffusionInstructPix2PixPipeline)
        # A distilled consistency model reads the scale itself, and takes no guidance from outside.
        self._scale_width = None if self._edits else pipeline.unet.config.time_cond_proj_dim
        self._scale_embedding: Any = getattr(pipeline, "get_guidance_scale_embedding", None)

    def __call__(
        self,
        latents: Float[Tensor, "s c h w"],
        timesteps: Float[Tensor, " s"],
        given: Conditions,
        *,
        is_guided: bool,
    ) -> Float[Tensor, "s c h w"]:
        """What the network predicts, in the latents' number format.

        Args:
            latents: Noisy, scaled as the network reads them.
            timesteps: Of the training's schedule.
            given: Of the same images.
            is_guided: Some scale is above 1; those at 1 come out as without guidance.
        """
        if self._scale_width or not is_guided:
            return self._predict(latents, timesteps, given.prompt, given.source, given)
        copies = 3 if self._edits else 2
        empty = self._empty_prompt.expand_as(given.prompt)
        predicted = self._predict(
            torch.cat([latents] * copies),
            torch.cat([timesteps] * copies),
            torch.cat([given.prompt, *[empty] * (copies - 1)]),
            None
            if given.source is None
            else torch.cat([given.source, given.source, torch.zeros_like(given.source)]),
            given,
        )
        return guide(predicted.chunk(copies), given.guidance_scale, given.image_guidance_scale)

    def forget(self) -> None:
        """Free what recorded calls hold of the device's memory."""
        self._network.forget()

    def _predict(
        self,
        latents: Float[Tensor, "b c h w"],
        timesteps: Float[Tensor, " b"],
        prompts: Float[Tensor, "b t d"],
        sources: Float[Tensor, "b c h w"] | None,
        given: Conditions,
    ) -> Float[Tensor, "b c h w"]:
        if sources is not None:
            latents = torch.cat([latents, sources], dim=1)
        scales = None
        if self._scale_width:
            scales = self._scale_embedding(
                given.guidance_scale.cpu() - 1, embedding_dim=self._scale_width
            ).to(latents.device, self._dtype)
        predicted = self._network(latents.to(self._dtype), timesteps, prompts, scales)
        return predicted.to(latents.dtype)


def guide(
    predicted: tuple[Float[Tensor, "s c h w"], ...],
    guidance_scale: Float[Tensor, " s"],
    image_guidance_scale: Float[Tensor, " s"],
) -> Float[Tensor, "s c h w"]:
    """Classifier-free guidance (arXiv:2207.12598), for an edit by image too (arXiv:2211.09800 3.3).

    Args:
        predicted: With the prompt; without; for an edit also without prompt and source.
        guidance_scale: By the prompt; 1 leaves the first prediction as it is.
        image_guidance_scale: By the source image.
    """
    scale = guidance_scale[:, None, None, None]
    with_prompt, without = predicted[:2]
    guided = without + scale * (with_prompt - without)
    if len(predicted) == 3:
        without_source = predicted[2]
        pulled = image_guidance_scale[:, None, None, None] * (without - without_source)
        guided = without_source + scale * (with_prompt - without) + pulled
    return torch.where(scale > 1, guided, with_prompt)
