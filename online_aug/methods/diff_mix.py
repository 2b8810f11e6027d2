"""Diff-Mix (arXiv:2403.19600) and the baselines of its paper: one engine, different fields."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from online_aug.labels import translation_label
from online_aug.methods.base import WITHIN_CLASS, ImageOf, MethodContext, Picture, Source, nowhere
from online_aug.request import GenerationRequest, Servable, StartsFrom


@dataclass(frozen=True)
class DiffMix:
    """Image-to-image translation with the prompt of the target class, labelled in between."""

    name: str
    targets: Literal["any", "own"] = "any"
    """Any class, the source's included as in the paper's code; or the source's."""
    starts_from: StartsFrom = "image"
    """Noise alone is text-to-image: nothing of the source is left but its class."""
    uses_finetuning: bool = True
    version: ClassVar[int] = 1
    pipeline: ClassVar[Literal["image_to_image"]] = "image_to_image"
    uses_saliency: ClassVar[bool] = False

    def plan(
        self, source: Source, variant: int, context: MethodContext, rng: np.random.Generator
    ) -> GenerationRequest:
        """Draw target class, strength and noise."""
        target = int(rng.choice(context.num_classes, p=context.target_weights))
        strength = float(context.strengths[int(rng.integers(len(context.strengths)))])
        if self.targets == "own":
            target = source.label
        return GenerationRequest(
            method=self.name,
            method_version=self.version,
            source_digest=source.digest,
            source_label=source.label,
            target_label=target,
            prompt=context.prompts[target],
            strength=1.0 if self.starts_from == "noise" else strength,
            starts_from=self.starts_from,
            guidance_scale=context.guidance_scale,
            num_inference_steps=context.num_inference_steps,
            scheduler=context.scheduler,
            resolution=context.resolution,
            variant=variant,
            noise_seed=int(rng.integers(2**63)),
            generator_fingerprint=context.generator_fingerprint,
        )

    def refusal(self, request: GenerationRequest, context: MethodContext) -> str | None:
        """Nothing is refused."""
        return None

    def prepare(
        self,
        images: UInt8[Tensor, "b 3 h w"],
        requests: Sequence[GenerationRequest],
        context: MethodContext,
        image_of: ImageOf,
    ) -> UInt8[Tensor, "b 3 h w"]:
        """The source images as they are."""
        return images

    def misfit(self, image: Servable) -> str | None:
        """What stays within a class takes no image between two."""
        fits = self.targets == "any" or image.source_label == image.target_label
        return None if fits else WITHIN_CLASS

    def foreground(
        self, requests: Sequence[GenerationRequest], context: MethodContext, side: int
    ) -> Bool[Tensor, "b s s"]:
        """Nowhere."""
        return nowhere(len(requests), side)

    def compose(
        self,
        source: Callable[[], Picture],
        generated: Picture,
        request: Servable,
        context: MethodContext,
        rng: np.random.Generator,
    ) -> tuple[Picture, Float[Tensor, " k"]]:
        """The generated image with Diff-Mix's soft label."""
        label = translation_label(
            torch.tensor([request.source_label]),
            torch.tensor([request.target_label]),
            torch.tensor([request.strength]),
            num_classes=context.num_classes,
            gamma=context.gamma,
        )
        return generated, label[0]

    def stages(
        self,
        source: Picture,
        generated: Picture,
        request: GenerationRequest,
        context: MethodContext,
        image_of: ImageOf,
        rng: np.random.Generator,
    ) -> Mapping[str, Picture]:
        """Source and generated image, which is what the classifier sees."""
        return {"source": source, "generated": generated}
