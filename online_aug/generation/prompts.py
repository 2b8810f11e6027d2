"""Prompt embeddings: each computed once, after which the text encoder leaves the device."""

from collections.abc import Iterable

import torch
from diffusers import StableDiffusionInstructPix2PixPipeline
from jaxtyping import Float
from torch import Tensor

from online_aug.generation.models import Pipeline


class Prompts:
    """Embeddings of a pipeline's prompts, on its device."""

    def __init__(self, pipeline: Pipeline, device: torch.device) -> None:
        """Take the pipeline's text encoder, which rests on the CPU between prompts."""
        self._pipeline = pipeline
        self._device = device
        self._known: dict[str, Float[Tensor, "t d"]] = {}
        pipeline.text_encoder.to("cpu")

    def __getitem__(self, prompt: str) -> Float[Tensor, "t d"]:
        """The embedding of a prompt, learned now if it has to be."""
        self.learn([prompt])
        return self._known[prompt]

    @torch.no_grad()
    def learn(self, prompts: Iterable[str]) -> None:
        """Compute what is not known yet, with the text encoder on the device meanwhile."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._known]
        if not new:
            return
        self._pipeline.text_encoder.to(self._device)
        for prompt in new:  # one by one: in a batch the arithmetic rounds otherwise
            self._known[prompt] = self._encode(prompt)[0]
        self._pipeline.text_encoder.to("cpu")

    def _encode(self, prompt: str) -> Float[Tensor, "1 t d"]:
        pipeline = self._pipeline
        if isinstance(pipeline, StableDiffusionInstructPix2PixPipeline):
            embedding: Tensor = pipeline._encode_prompt(prompt, self._device, 1, False)
            return embedding
        embedding, _ = pipeline.encode_prompt(prompt, self._device, 1, False)
        return embedding
