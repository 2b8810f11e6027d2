"""SGD-Mix (arXiv:2505.11813): the source's foreground on another image's background, refined."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from online_aug.methods.base import WITHIN_CLASS, ImageOf, MethodContext, Picture, Source, nowhere
from online_aug.request import GenerationRequest, Servable
from online_aug.saliency import SaliencyTable, otsu_masks

SOURCE_TOO_SMALL = "saliency: source mask too small"
UNION_TOO_LARGE = "saliency: union mask too large"


@dataclass(frozen=True, kw_only=True)
class SgdMixSettings:
    """What SGD-Mix needs to know beside what all methods share."""

    candidates: tuple[int, int]
    """Fewest and most images among which a background is looked for."""
    max_union_share: float
    """Share of the image that both foregrounds together may cover."""
    min_source_share: float
    """Share of the image that the source's foreground must cover."""
    max_draws: int
    """How often candidates are drawn until a background fits."""
    keeps_foreground: bool = False
    """Only what is not the source's foreground is drawn anew."""


class SgdMix:
    """Mixing by saliency, then image-to-image translation with the prompt of the source's class.

    Of N random images the one becomes the background whose saliency map is nearest to the
    source's: its foreground then lies where the source's does, and is covered by it. Both Otsu
    masks together keep the source's pixels. The paper leaves open whether the background may come
    from the source's class; here it may, since the label does not depend on it.
    """

    version: ClassVar[int] = 1
    pipeline: ClassVar[Literal["image_to_image"]] = "image_to_image"
    uses_saliency: ClassVar[bool] = True
    uses_finetuning: ClassVar[bool] = True

    def plan(
        self, source: Source, variant: int, context: MethodContext, rng: np.random.Generator
    ) -> GenerationRequest:
        """Draw strength, noise and background.

        Raises:
            ValueError: If the context has no saliency table, or the source is not in it.
        """
        table = _table(context)
        strength = float(context.strengths[int(rng.integers(len(context.strengths)))])
        noise_seed = int(rng.integers(2**63))
        background = _background(table, table.place(source.digest), context, rng)
        return GenerationRequest(
            method="sgd_mix",
            method_version=self.version,
            source_digest=source.digest,
            source_label=source.label,
            target_label=source.label,
            target_digest=table.digests[background],
            prompt=context.prompts[source.label],
            strength=strength,
            guidance_scale=context.guidance_scale,
            num_inference_steps=context.num_inference_steps,
            scheduler=context.scheduler,
            resolution=context.resolution,
            variant=variant,
            noise_seed=noise_seed,
            keeps_foreground=_settings(context).keeps_foreground,
            saliency_version=table.version,
            generator_fingerprint=context.generator_fingerprint,
        )

    def refusal(self, request: GenerationRequest, context: MethodContext) -> str | None:
        """The paper's break conditions: no foreground was found, or no background is left."""
        table = _table(context)
        source, background = (table.place(digest) for digest in _digests(request))
        if table.source_share(source) < _settings(context).min_source_share:
            return SOURCE_TOO_SMALL
        if table.union_share(source, background) > _settings(context).max_union_share:
            return UNION_TOO_LARGE
        return None

    def prepare(
        self,
        images: UInt8[Tensor, "b 3 h w"],
        requests: Sequence[GenerationRequest],
        context: MethodContext,
        image_of: ImageOf,
    ) -> UInt8[Tensor, "b 3 h w"]:
        """The source where either mask is, the background elsewhere."""
        masks = union_masks(requests, _table(context), images.shape[-1])
        backgrounds = torch.stack([image_of(_digests(request)[1]) for request in requests])
        return torch.where(masks.unsqueeze(1), images, backgrounds)

    def misfit(self, image: Servable) -> str | None:
        """The label is the source's alone."""
        return None if image.source_label == image.target_label else WITHIN_CLASS

    def foreground(
        self, requests: Sequence[GenerationRequest], context: MethodContext, side: int
    ) -> Bool[Tensor, "b s s"]:
        """The source's own mask; what covers the background's foreground may be drawn anew."""
        if not any(request.keeps_foreground for request in requests):
            return nowhere(len(requests), side)
        kept = torch.tensor([request.keeps_foreground for request in requests])
        sources = [request.source_digest for request in requests]
        return otsu_masks(_table(context).large_maps(sources, side)) & kept[:, None, None]

    def compose(
        self,
        source: Callable[[], Picture],
        generated: Picture,
        request: Servable,
        context: MethodContext,
        rng: np.random.Generator,
    ) -> tuple[Picture, Float[Tensor, " k"]]:
        """The generated image with the source's label."""
        label = F.one_hot(torch.tensor(request.source_label), context.num_classes)
        return generated, label.float()

    def stages(
        self,
        source: Picture,
        generated: Picture,
        request: GenerationRequest,
        context: MethodContext,
        image_of: ImageOf,
        rng: np.random.Generator,
    ) -> Mapping[str, Picture]:
        """Where the source is looked at, what is kept of it, the background, and their mix."""
        start, table = image_of(request.source_digest), _table(context)
        side = start.shape[-1]
        saliency = table.large_maps([request.source_digest], side)
        mask = union_masks([request], table, side)
        mixed = self.prepare(start.unsqueeze(0), [request], context, image_of)
        return {
            "source": source,
            "saliency": _picture((saliency * 255).to(torch.uint8).expand(3, -1, -1)),
            "mask": _picture((mask * 255).to(torch.uint8).expand(3, -1, -1)),
            "target": _picture(image_of(_digests(request)[1])),
            "mixed": _picture(mixed[0]),
            "generated": generated,
        }


def union_masks(
    requests: Sequence[GenerationRequest], table: SaliencyTable, side: int
) -> Bool[Tensor, "b s s"]:
    """Where the source or the background shows its own foreground."""
    pairs = [digest for request in requests for digest in _digests(request)]
    masks = otsu_masks(table.large_maps(pairs, side))
    return masks[0::2] | masks[1::2]


def _background(
    table: SaliencyTable, source: int, context: MethodContext, rng: np.random.Generator
) -> int:
    """The nearest of some candidates; drawn again while the masks leave too little of it."""
    settings = _settings(context)
    fewest, most = settings.candidates
    for _ in range(settings.max_draws):
        count = int(rng.integers(fewest, most + 1))
        drawn = rng.choice(len(table) - 1, count, replace=False, shuffle=False)
        background = table.nearest(source, drawn + (drawn >= source))  # never the source itself
        if table.union_share(source, background) <= settings.max_union_share:
            break
    return background


def _settings(context: MethodContext) -> SgdMixSettings:
    assert isinstance(context.settings, SgdMixSettings)  # the experiment fills it in
    return context.settings


def _table(context: MethodContext) -> SaliencyTable:
    if context.saliency is None:
        raise ValueError("context.saliency must be a table for sgd_mix, got None")
    return context.saliency


def _digests(request: GenerationRequest) -> tuple[str, str]:
    if request.target_digest is None:
        raise ValueError("request.target_digest must name the background of sgd_mix, got None")
    return request.source_digest, request.target_digest


def _picture(image: UInt8[Tensor, "3 h w"]) -> Picture:
    return image.permute(1, 2, 0).contiguous().numpy()
