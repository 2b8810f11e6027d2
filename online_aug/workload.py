"""What works through the plan of a recipe: its requests, their images, the loaded model."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Literal

import torch

from online_aug.dataloader.images import BadImageError
from online_aug.generation.autoencoding import TOGETHER
from online_aug.generation.image_generator import ImageGenerator
from online_aug.generation.memory import MOST_SLOTS
from online_aug.generation.order import Stripe, Weights, part_of
from online_aug.generation.starting import fit
from online_aug.generation.work import Work
from online_aug.judge import build_gate
from online_aug.recipe import Recipe
from online_aug.recipe_context import target_weights
from online_aug.recipe_images import SourceImages
from online_aug.records import GenerationRequest

UNREADABLE = "unreadable source"
"""Why requests are rejected whose image was lost meanwhile, where `data.on_bad_image` is skip."""


def work_of(recipe: Recipe, number: int = 0, count: int = 1) -> Work:
    """The plan, and what its images start from.

    Args:
        recipe: Ready to be planned.
        number: Of this process among those of this machine, from 0: each begins with its part.
        count: Of them.
    """
    config = recipe.config
    sources = SourceImages(recipe.splits.train, recipe.sources)
    resolution = config.generation.resolution

    @lru_cache(_images_under_way(config.generation.slots))  # what was accepted can be prepared
    def image_of(digest: str) -> torch.Tensor:
        return fit(sources.by_digest(digest), resolution)

    def prepare(requests: Sequence[GenerationRequest]) -> torch.Tensor:
        images = torch.stack([image_of(request.source_digest) for request in requests])
        kept = torch.zeros_like(images[:, :1])
        for name, method in recipe.methods.items():
            places = [place for place, request in enumerate(requests) if request.method == name]
            if places:
                some = [requests[place] for place in places]
                context = recipe.context_for(some[0])  # maps of one plan, so the same for all
                images[places] = method.prepare(images[places], some, context, image_of)
                kept[places, 0] = method.foreground(some, context, resolution).byte()
        return torch.cat([images, kept], dim=1)

    def refusal(request: GenerationRequest) -> str | None:
        if config.data.on_bad_image == "skip" and not _can_be_read(request, image_of):
            return UNREADABLE
        return recipe.methods[request.method].refusal(request, recipe.context_for(request))

    schedule = config.schedule
    ahead = -(-config.generation.max_ahead // count)

    def plan_of(version: str) -> list[GenerationRequest]:
        return part_of(recipe.plan_of(version), schedule)

    return Work(
        plan=part_of(recipe.plan, schedule),
        plan_of=plan_of if recipe.saliency.follows_classifier else None,
        prepare=prepare,
        refusal=refusal,
        # A trainer that waits for one image cannot serve the others that would end a pause.
        max_ahead=ahead if config.mixing.starvation == "substitute" else None,
        stripe=Stripe.of(schedule).split(number, count),
        weights=_weights(recipe),
        follows_losses=schedule.priority == "hard",
    )


def _images_under_way(slots: Literal["auto"] | int) -> int:
    """Sources and targets of all requests that are accepted and not yet prepared."""
    return 2 * ((MOST_SLOTS if slots == "auto" else slots) + 4 * TOGETHER)


def _can_be_read(request: GenerationRequest, image_of: Callable[[str], torch.Tensor]) -> bool:
    try:
        for digest in filter(None, [request.source_digest, request.target_digest]):
            image_of(digest)
    except BadImageError:
        return False
    return True


def _weights(recipe: Recipe) -> Weights | None:
    if recipe.image_weights is not None:
        return recipe.image_weights
    match recipe.config.schedule.priority:
        case "uniform":
            return None
        case "long_tail":
            return target_weights(recipe.class_sizes, balance=1.0)
        case "hard":  # until the classifier has losses
            return [1.0] * len(recipe.class_sizes)


def load_generator(recipe: Recipe) -> ImageGenerator:
    """The recipe's model on its device, with the judge of its images and the plan's prompts.

    Raises:
        UserError: If model, adapters or judge cannot be used.
    """
    config = recipe.config
    generator = ImageGenerator.load(
        recipe.model,
        recipe.adapters,
        config.generation,
        recipe.dtype,
        recipe.device,
        build_gate(recipe),
    )
    generator.keep_latents_in(config.cache.path, config.generation.latents_gib * 2**30)
    generator.learn([request.prompt for request in recipe.plan])
    return generator
