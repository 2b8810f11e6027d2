"""The plan: every request of a recipe, in the order in which they are made."""

from collections.abc import Sequence
from dataclasses import replace

from online_aug.methods.contract import Method, MethodContext, Source
from online_aug.records import GenerationRequest
from online_aug.seeding import numpy_rng


def plan_requests(
    method: Method, sources: Sequence[Source], context: MethodContext, variants_per_image: int
) -> list[GenerationRequest]:
    """All requests, variant by variant, each time through all sources in a new random order.

    A request depends on the recipe's seed, the source image and the variant number; on the
    context's saliency table where the method looks at other images, on its target weights where
    they are given. So a source that is in two data sets, cuts or runs asks for the same image in
    each, unless a background has to be found for it or a class by its size.
    Copies of one image in a set share their requests.
    """
    unique = list({source.digest: source for source in sources}.values())
    requests = []
    for variant in range(variants_per_image):
        order = numpy_rng("order", context.seed, variant).permutation(len(unique))
        for position in order:
            source = unique[position]
            rng = numpy_rng("plan", context.seed, variant, source.digest)
            request = method.plan(source, variant, context, rng)
            requests.append(replace(request, gate_version=context.gate_version))
    return requests
