"""The plan: every request of a recipe, in the order in which they are made."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from online_aug.methods.contract import Method, MethodContext, Source
from online_aug.records import GenerationRequest
from online_aug.seeding import numpy_rng


@dataclass(frozen=True, kw_only=True)
class Part:
    """One of the methods that share a plan."""

    method: Method
    context: MethodContext
    weight: float = 1.0
    """Its share of the requests, in proportion to all weights."""


def plan_requests(
    parts: Sequence[Part], sources: Sequence[Source], variants_per_image: int
) -> list[GenerationRequest]:
    """All requests, variant by variant, each time through all sources in a new random order.

    A request depends on the recipe's seed, the source image and the variant number; on the
    context's saliency table where the method looks at other images, on its target weights where
    they are given. So a source that is in two data sets, cuts or runs asks for the same image in
    each, unless a background has to be found for it or a class by its size. Copies of one image in
    a set share their requests. Of several methods chance chooses one for each request, which is
    then what that method alone would ask for.

    Args:
        parts: At least one; all contexts have one seed.
        sources: Training images.
        variants_per_image: Requests for each.
    """
    unique = list({source.digest: source for source in sources}.values())
    seed = parts[0].context.seed
    requests = []
    for variant in range(variants_per_image):
        order = numpy_rng("order", seed, variant).permutation(len(unique))
        for source in (unique[position] for position in order):
            part = _chosen(parts, numpy_rng("method", seed, variant, source.digest))
            rng = numpy_rng("plan", seed, variant, source.digest)
            request = part.method.plan(source, variant, part.context, rng)
            requests.append(replace(request, gate_version=part.context.gate_version))
    return requests


def _chosen(parts: Sequence[Part], rng: np.random.Generator) -> Part:
    weights = np.array([part.weight for part in parts])
    return parts[int(rng.choice(len(parts), p=weights / weights.sum()))]
