"""From requests to images: batches of one of diffusers' pipelines with one RNG a request."""

from collections.abc import Sequence
from pathlib import Path

import torch
import torchvision.transforms.v2.functional as tvf
from diffusers import StableDiffusionInstructPix2PixPipeline
from jaxtyping import Float, UInt8
from torch import Tensor

from online_aug.config import GenerationConfig
from online_aug.generation.adapter_files import Adapters
from online_aug.generation.adapters import load_adapters
from online_aug.generation.identity import kind_of
from online_aug.generation.models import (
    Pipeline,
    choose_attention,
    load_pipeline,
)
from online_aug.generation.solvers import sampling_scheduler
from online_aug.records import GenerationRequest
from online_aug.seeding import torch_rng

Group = tuple[float, float, float | None, int, str, int]


def group_of(request: GenerationRequest) -> Group:
    """What requests of one pipeline call must have in common."""
    return (
        request.strength,
        request.guidance_scale,
        request.image_guidance_scale,
        request.num_inference_steps,
        request.scheduler,
        request.resolution,
    )


def fit(image: UInt8[Tensor, "3 h w"], resolution: int) -> UInt8[Tensor, "3 r r"]:
    """The image as a square of the generator's resolution, aspect ignored as Diff-Mix does."""
    if image.shape[-2:] == (resolution, resolution):
        return image
    resized: Tensor = tvf.resize(image, [resolution, resolution], antialias=True)
    return resized


class ImageGenerator:
    """A loaded pipeline that keeps its prompt embeddings."""

    def __init__(self, pipeline: Pipeline, attention: str, batch_size: int) -> None:
        self.attention = attention
        self._batch_size = batch_size
        self._pipeline = pipeline
        self._trained_with = dict(pipeline.scheduler.config)
        self._prompts: dict[str, Float[Tensor, "t d"]] = {}

    @classmethod
    def load(
        cls,
        model: Path,
        finetuned: Adapters | None,
        config: GenerationConfig,
        dtype: str,
        device: str,
    ) -> "ImageGenerator":
        """Load model and adapters onto a device; what kind it is, its directory tells.

        Raises:
            UserError: If the directory holds no Stable Diffusion, or the attention cannot run here.
        """
        pipeline = load_pipeline(model, dtype, kind_of(model))
        if finetuned:
            load_adapters(pipeline, finetuned)
        pipeline.to(device)
        attention = choose_attention(config.attention, pipeline, torch.device(device))
        return cls(pipeline, attention, config.slots)

    @torch.no_grad()
    def generate(
        self, requests: Sequence[GenerationRequest], images: UInt8[Tensor, "b 3 h w"]
    ) -> Float[Tensor, "b 3 r r"]:
        """Images in [0, 1], NaN where the model made NaN, for requests of one group.

        Noise comes from each request's own seed, and a smaller batch than there are slots is filled
        up: in a batch of another size the arithmetic rounds otherwise, and an image would depend on
        how many happened to be made with it.

        Raises:
            ValueError: If the requests differ in what a pipeline call shares, or are for a pipeline
                of the other kind.
        """
        groups = {group_of(request) for request in requests}
        if len(groups) != 1:
            raise ValueError(f"requests must be of one group, got {len(groups)}")
        strength, guidance_scale, image_guidance_scale, steps, scheduler, resolution = groups.pop()
        self._pipeline.scheduler = sampling_scheduler(scheduler, self._trained_with)
        missing = max(0, self._batch_size - len(requests))
        filled = [*requests, *[requests[-1]] * missing]
        started = torch.stack([fit(image, resolution) for image in images])
        started = torch.cat([started, started[-1:].expand(missing, -1, -1, -1)])
        finished: Tensor = self._pipeline(
            image=started.float() / 255,
            prompt_embeds=torch.stack([self._embedding(r.prompt) for r in filled]),
            negative_prompt_embeds=self._embedding("").expand(len(filled), -1, -1),
            **self._own_settings(strength, image_guidance_scale),
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            generator=[torch_rng(request.noise_seed) for request in filled],
            output_type="pt",
        ).images
        return finished[: len(requests)].cpu()

    @property
    def _edits(self) -> bool:
        return isinstance(self._pipeline, StableDiffusionInstructPix2PixPipeline)

    def _own_settings(
        self, strength: float, image_guidance_scale: float | None
    ) -> dict[str, float]:
        """What only this kind of pipeline takes."""
        if self._edits != (image_guidance_scale is not None):
            raise ValueError(
                "image_guidance_scale must be given to an InstructPix2Pix and to no other model, "
                f"got {image_guidance_scale}"
            )
        if image_guidance_scale is None:
            return {"strength": strength}
        return {"image_guidance_scale": image_guidance_scale}

    def _embedding(self, prompt: str) -> Float[Tensor, "t d"]:
        if prompt not in self._prompts:
            self._prompts[prompt] = self._encode(prompt)[0]
        return self._prompts[prompt]

    def _encode(self, prompt: str) -> Float[Tensor, "1 t d"]:
        pipeline = self._pipeline
        if self._edits:
            embedding: Tensor = pipeline._encode_prompt(prompt, pipeline.device, 1, False)
            return embedding
        embedding, _ = pipeline.encode_prompt(prompt, pipeline.device, 1, False)
        return embedding
