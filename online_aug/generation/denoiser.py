"""The U-Net with classifier-free guidance, every image of a batch at its own time and scales.

`Network` calls the U-Net plainly, recorded and replayed, or compiled. The shape of a call is the
same at every step, so finding out what to compute can be done once; on a CPU that is a third of the
time of a small network.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from diffusers import StableDiffusionInstructPix2PixPipeline, UNet2DConditionModel
from jaxtyping import Float
from torch import Tensor, nn

from online_aug.diffusion.loading import Pipeline
from online_aug.seeding import recorded

Execution = Literal["eager", "graph", "compile"]
"""Plain calls, calls that are recorded and replayed, or torch.compile."""
Call: TypeAlias = Callable[..., Tensor]
_WARM_UP_CALLS = 3


class Conditions(NamedTuple):
    """The prompts and guidance that steer the denoising of each of s images."""

    prompt: Float[Tensor, "s t d"]
    source: Float[Tensor, "s c h w"] | None
    """Latents of the sources, which an InstructPix2Pix reads beside the noisy ones."""
    guidance_scale: Float[Tensor, " s"]
    image_guidance_scale: Float[Tensor, " s"]


class Denoiser:
    """Predicts one step of all images in one call of the network, guidance included."""

    def __init__(
        self,
        pipeline: Pipeline,
        empty_prompt: Float[Tensor, "t d"],
        execution: Execution = "eager",
    ) -> None:
        """Take a pipeline whose U-Net is on its device.

        Args:
            pipeline: Image-to-image or InstructPix2Pix.
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
        """Return the network's prediction in the latents' number format.

        Args:
            latents: Noisy latents, scaled as the network reads them.
            timesteps: Time steps of the schedule the model was trained with.
            given: Conditions of the same images.
            is_guided: Whether some guidance scale is above 1; images at 1 come out unguided.
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

    def forget_recordings(self) -> None:
        """Free the device's memory that recorded calls hold."""
        self._network.forget_recordings()

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
    """Apply classifier-free guidance (arXiv:2207.12598), for edits by image too (arXiv:2211.09800).

    Args:
        predicted: Predictions with the prompt, without it, and for an edit also without the source.
        guidance_scale: Weight of the prompt; 1 leaves the first prediction as it is.
        image_guidance_scale: Weight of the source image, section 3.3.
    """
    scale = guidance_scale[:, None, None, None]
    with_prompt, without = predicted[:2]
    guided = without + scale * (with_prompt - without)
    if len(predicted) == 3:
        without_source = predicted[2]
        pulled = image_guidance_scale[:, None, None, None] * (without - without_source)
        guided = without_source + scale * (with_prompt - without) + pulled
    return torch.where(scale > 1, guided, with_prompt)


def chosen_execution(wanted: Literal["auto"] | Execution, device: torch.device) -> Execution:
    """Return how to call the network.

    `auto` records on a CPU; on a GPU a call over all slots hides what Python does meanwhile.
    """
    if wanted != "auto":
        return wanted
    return "graph" if device.type == "cpu" else "eager"


class Network:
    """A U-Net whose calls are recorded or compiled for each shape that they have."""

    def __init__(self, unet: UNet2DConditionModel, execution: Execution) -> None:
        """Take a U-Net on its device; recorded calls keep the weights of that moment."""
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
        """Return the prediction; `scales` embed the guidance scale of a distilled model."""
        inputs = (latents, timesteps, prompts, *([] if scales is None else [scales]))
        shapes = tuple(tensor.shape for tensor in inputs)
        if shapes not in self._calls:
            self._calls[shapes] = self._fast_call(inputs)
        return self._calls[shapes](*inputs)

    def forget_recordings(self) -> None:
        """Free the device's memory that recordings hold."""
        self._calls.clear()

    def _fast_call(self, inputs: tuple[Tensor, ...]) -> Call:
        if self._execution == "eager":
            return self._plain
        if self._execution == "compile":
            return torch.compile(self._plain, dynamic=False)
        if inputs[0].device.type == "cuda":
            return _CudaGraph(self._plain, inputs)
        return recorded(self._plain, inputs)


class _Plain(nn.Module):
    """The U-Net with tensors in and one tensor out, as recording and compiling want it."""

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


class _CudaGraph:
    """The kernels of one call, launched again as a whole on tensors that keep their addresses."""

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
