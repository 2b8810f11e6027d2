"""The U-Net with classifier-free guidance, every image of a batch at its own time and scales."""

from typing import Any, NamedTuple

import torch
from diffusers import StableDiffusionInstructPix2PixPipeline
from jaxtyping import Float
from torch import Tensor

from online_aug.generation.execution import Execution, Network
from online_aug.generation.models import Pipeline


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
