"""What every augmentation method provides, and what it is given.

The plan: every request of an experiment, in the order in which they are made.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from online_aug.request import GenerationRequest, PipelineKind, Servable
from online_aug.saliency import SaliencyTable
from online_aug.seeding import numpy_rng

# Of any size: with a name for a side, two pictures of one call would have to agree.
Picture = UInt8[np.ndarray, "_ _ 3"]
ImageOf = Callable[[str], UInt8[Tensor, "3 _ _"]]
"""A training image by its digest, at the generator's resolution."""
WITHIN_CLASS = "it lies between two classes, where the method stays within one"
"""Why a method cannot label an image."""


def nowhere(count: int, side: int) -> Bool[Tensor, "b s s"]:
    """For images without a foreground that has to stay."""
    return torch.zeros(count, side, side, dtype=torch.bool)


@dataclass(frozen=True, kw_only=True)
class Source:
    """A real training image as planning sees it: no pixels."""

    digest: str
    label: int


@dataclass(frozen=True, kw_only=True)
class MethodContext:
    """What all requests of one experiment share."""

    prompts: tuple[str, ...]
    """The prompt of each class, such as `a photo of a <class_3> bird`."""
    strengths: tuple[float, ...]
    gamma: float
    guidance_scale: float
    num_inference_steps: int
    scheduler: str
    resolution: int
    seed: int
    """Seed of the plan and of the noise (`generation.seed`)."""
    generator_fingerprint: str
    target_weights: tuple[float, ...] | None = None
    """Chance of each class to be drawn as target, summing to 1; None draws all alike."""
    gate_version: str | None = None
    """What judges the images' classes; None where nothing does."""
    settings: object = None
    """What the experiment's own method needs beside this, of that method's type."""
    saliency: SaliencyTable | None = field(default=None, compare=False, repr=False)
    """Where a classifier looks in every training image, for methods that ask."""

    @property
    def num_classes(self) -> int:
        """Classes of the data set."""
        return len(self.prompts)


class Method(Protocol):
    """Plan a request, prepare what diffusion starts from, label what came out."""

    @property
    def version(self) -> int:
        """Raised when the method starts to make other pixels from the same fields."""
        ...

    @property
    def pipeline(self) -> PipelineKind:
        """What kind of model makes its images."""
        ...

    @property
    def uses_saliency(self) -> bool:
        """Whether planning needs `MethodContext.saliency`."""
        ...

    @property
    def uses_finetuning(self) -> bool:
        """Whether its model learns the classes first; else it is taken as it is."""
        ...

    def plan(
        self, source: Source, variant: int, context: MethodContext, rng: np.random.Generator
    ) -> GenerationRequest:
        """The request of one image; a pure function of its arguments."""
        ...

    def refusal(self, request: GenerationRequest, context: MethodContext) -> str | None:
        """Why no image is to be made of a request, or None where it can be prepared."""
        ...

    def prepare(
        self,
        images: UInt8[Tensor, "b 3 h w"],
        requests: Sequence[GenerationRequest],
        context: MethodContext,
        image_of: ImageOf,
    ) -> UInt8[Tensor, "b 3 h w"]:
        """What the diffusion model starts from; writes into no input.

        Args:
            images: The sources, at the generator's resolution.
            requests: One for each image, none of them refused.
            context: What they share.
            image_of: Reads another training image.
        """
        ...

    def misfit(self, image: Servable) -> str | None:
        """Why an image that another program made cannot be composed, or None where it can."""
        ...

    def foreground(
        self, requests: Sequence[GenerationRequest], context: MethodContext, side: int
    ) -> Bool[Tensor, "b s s"]:
        """Where the starting images, `side` px large, have to stay as they are."""
        ...

    def compose(
        self,
        source: Callable[[], Picture],
        generated: Picture,
        request: Servable,
        context: MethodContext,
        rng: np.random.Generator,
    ) -> tuple[Picture, Float[Tensor, " k"]]:
        """The image the classifier sees and its soft label; cheap, writes into no input.

        Args:
            source: Reads the request's source image, for a method that needs its pixels.
            generated: What the cache holds for the request.
            request: What was asked for.
            context: What the experiment's requests share.
            rng: Chance of this reading: seed, epoch and position of the sample.
        """
        ...

    def stages(
        self,
        source: Picture,
        generated: Picture,
        request: GenerationRequest,
        context: MethodContext,
        image_of: ImageOf,
        rng: np.random.Generator,
    ) -> Mapping[str, Picture]:
        """All pictures of `prepare` and `compose` by name, from the source to what is served."""
        ...


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

    A request depends on the experiment's seed, the source image and the variant number; on the
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
