"""The base class of all methods, what a method is given, and methods that share a plan.

Images are NumPy arrays here, `h w 3` in uint8, and soft labels are float32 vectors: methods are
imported wherever a configuration is read, and PyTorch takes seconds to load.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
from jaxtyping import Bool, Float, UInt8

from online_aug.request import GenerationRequest, PipelineKind, Servable
from online_aug.settings import Positive, Section

if TYPE_CHECKING:
    from online_aug.methods.adaptive import StrengthTable
    from online_aug.methods.fractals import FractalConfig
    from online_aug.saliency import SaliencyTable

# Without names for the sides: two pictures of one call may differ in size.
Picture = UInt8[np.ndarray, "_ _ 3"]
PictureOf = Callable[[str], Picture]
"""Reads a training image by its digest, at the generator's resolution; without a generator at the
size of the source image."""
WITHIN_CLASS = "it lies between two classes, where the method stays within one"
"""The reason against an imported image that a method cannot label."""


class MethodSettings(Section):
    """The keys of `method` that every method takes."""

    name: str
    """The method: a name, or a class in a file such as `my_method.py:NextClass`, relative to the
    working directory. Given on the command line, it takes over those keys of the file that it has
    too."""
    weight: Positive = 1.0
    """If `method` lists several: this one's part of the images, in proportion to all weights."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A real training image as planning sees it: without pixels."""

    digest: str
    label: int


class GenerationSection(Protocol):
    """The keys of `generation` that a method may read."""

    num_inference_steps: int | None
    guidance_scale: float
    resolution: int | None
    variants_per_image: int

    @property
    def scheduler(self) -> str:
        """Solver of the denoising steps."""


class SharedSections(Protocol):
    """The sections of a configuration that a method may read beside its own."""

    @property
    def generation(self) -> GenerationSection:
        """How images are made."""

    @property
    def fractals(self) -> "FractalConfig":
        """The fractal pictures."""


class Resources(Protocol):
    """Files that a method needs when images are composed; pickled to loader processes."""

    def ensure(self) -> None:
        """Write the files unless they are there."""


@dataclass(frozen=True, kw_only=True)
class MethodContext:
    """The values that all requests of one method share in one experiment."""

    prompts: tuple[str, ...]
    """The prompt of each class, such as `a photo of a <class_3> bird`."""
    class_sizes: tuple[int, ...]
    """Training images of each class."""
    guidance_scale: float
    image_guidance_scale: float
    num_inference_steps: int
    scheduler: str
    resolution: int
    """Side of the generated square, px."""
    seed: int
    """Seed of the plan and of the noise (`generation.seed`)."""
    generator_fingerprint: str
    gate_version: str | None = None
    """Version of the gate that judges the images' classes; None if no gate does."""
    resources: Any = None
    """The result of `Method.resources`."""
    saliency: "SaliencyTable | None" = field(default=None, compare=False, repr=False)
    """The foreground of every training image, for methods that use it."""
    strengths: "StrengthTable | None" = None
    """The strength of every request, for methods that learn it."""

    @property
    def num_classes(self) -> int:
        """Number of classes of the data set."""
        return len(self.prompts)


class Method(ABC):
    """A way to augment images: plans requests, prepares what diffusion starts from, labels images.

    A method is a subclass that writes `plan` and `compose`; everything else has a default.
    """

    Settings: ClassVar[type[MethodSettings]] = MethodSettings
    """The keys under `method`; a subclass of `MethodSettings` with a docstring for each key."""
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Defaults for other sections that come with the method, such as `{"mixing": {...}}`."""
    version: ClassVar[int] = 1
    """Raise it if the method starts to make other pixels from the same fields of a request."""
    pipeline: ClassVar[PipelineKind] = "image_to_image"
    """The kind of model that makes the images."""
    generates: ClassVar[bool] = True
    """Whether a generator makes the images, from what `prepare` returns; otherwise every sample is
    planned, prepared and composed anew in a loader process, without cache or variants."""
    uses_saliency: ClassVar[bool] = False
    """Whether planning reads `MethodContext.saliency`."""
    keeps_class: ClassVar[bool] = False
    """Whether every request's target class is its source's, so that it is known without `plan`."""
    uses_finetuning: ClassVar[bool] = True
    """Whether the model learns the classes first; otherwise it is taken as it is."""
    code_digest: ClassVar[str | None] = None
    """Digest of the file that defines the method; None if it comes with this package."""

    def __init__(self, settings: MethodSettings) -> None:
        """Take the settings, which are of the class `Settings`."""
        self.settings: Any = settings

    def __reduce__(self) -> tuple[Callable[..., "Method"], tuple[dict[str, Any]]]:
        # The class may be of a user's file, which the other process has to import first.
        from online_aug.methods.registry import restore

        return restore, (self.settings.model_dump(mode="json"),)

    @property
    def needs_saliency(self) -> bool:
        """Whether planning, or composing with these settings, reads `MethodContext.saliency`."""
        return self.uses_saliency

    @property
    def name(self) -> str:
        """The name in requests: for a class in a file the name of the class."""
        return str(self.settings.name).rpartition(":")[2]

    def check(self, config: SharedSections) -> None:  # noqa: B027 - a default, not a gap
        """Raise `ValueError` if the settings do not fit the other sections."""

    def check_images(self, count: int) -> None:  # noqa: B027
        """Raise `UserError` if the method cannot work with a training set of `count` images."""

    def resources(self, config: SharedSections) -> Resources | None:
        """Find what `compose` needs beside the settings; do not write anything yet.

        Raises:
            UserError: If it cannot be used.
        """
        return None

    @abstractmethod
    def plan(
        self, source: Source, variant: int, context: MethodContext, rng: np.random.Generator
    ) -> GenerationRequest:
        """Draw the request of one image: a pure function of its arguments; see `request`."""

    def request(
        self,
        source: Source,
        variant: int,
        context: MethodContext,
        rng: np.random.Generator,
        **drawn: Any,
    ) -> GenerationRequest:
        """Draw the noise and complete a request; to be called by `plan`.

        Args:
            source: The image to start from.
            variant: Number of the image among those of the source.
            context: What the requests share.
            rng: Chance of this request.
            drawn: Fields that the method decides. The defaults are the source's class as target,
                the target's prompt and strength 1.
        """
        target = drawn.setdefault("target_label", source.label)
        source_filter = getattr(self.settings, "source_filter", "bilinear")
        usual = {"prompt": context.prompts[target], "strength": 1.0, "source_filter": source_filter}
        return GenerationRequest(
            method=self.name,
            method_version=self.version,
            source_digest=source.digest,
            source_label=source.label,
            guidance_scale=context.guidance_scale,
            num_inference_steps=context.num_inference_steps,
            scheduler=context.scheduler,
            resolution=context.resolution,
            variant=variant,
            noise_seed=int(rng.integers(2**63)),
            generator_fingerprint=context.generator_fingerprint,
            code_digest=self.code_digest,
            gate_version=context.gate_version,
            **usual | drawn,
        )

    def prompts(self, context: MethodContext) -> Sequence[str]:
        """Return the prompts that requests may have; others are embedded when they come."""
        return context.prompts

    def refusal(self, request: GenerationRequest, context: MethodContext) -> str | None:
        """Return the reason to make no image of a request, or None if it can be made."""
        return None

    def prepare(
        self,
        images: UInt8[np.ndarray, "b h w 3"],
        requests: Sequence[GenerationRequest],
        context: MethodContext,
        image_of: PictureOf,
    ) -> UInt8[np.ndarray, "b h w 3"]:
        """Return the images that diffusion starts from; write into no input.

        Args:
            images: The source images, at the generator's resolution; without a generator one image
                of any size.
            requests: The request of each image; none of them was refused.
            context: What the requests share.
            image_of: Reads another training image.
        """
        return images

    def kept(
        self, requests: Sequence[GenerationRequest], context: MethodContext, side: int
    ) -> Bool[np.ndarray, "b s s"]:
        """Mark the pixels of the starting images, `side` px large, that have to stay."""
        return np.zeros((len(requests), side, side), np.bool_)

    @abstractmethod
    def compose(
        self,
        source: Callable[[], Picture],
        generated: Picture,
        request: Servable,
        context: MethodContext,
        rng: np.random.Generator,
    ) -> tuple[Picture, Float[np.ndarray, " k"]]:
        """Return the image that the classifier sees and its soft label.

        It runs in a loader process for every sample: it has to be cheap, and writes into no input.

        Args:
            source: Reads the source image, for a method that needs its pixels.
            generated: The image that the cache holds for the request, or that `prepare` made if
                no generator does.
            request: The request of that image.
            context: What the requests share.
            rng: Chance of this sample: depends on seed, epoch and position.
        """

    def misfit(self, image: Servable) -> str | None:
        """Return the reason why an imported image cannot be composed, or None if it can."""
        return None

    def caption(self, request: GenerationRequest) -> str | None:
        """Return the word for an image in galleries, or None if it is the target class."""
        return None

    def stages(
        self,
        source: Picture,
        generated: Picture,
        request: GenerationRequest,
        context: MethodContext,
        image_of: PictureOf,
        rng: np.random.Generator,
    ) -> Mapping[str, Picture]:
        """Return the pictures of `prepare` and `compose` by name, from the source to the result."""
        final, _ = self.compose(lambda: source, generated, request, context, rng)
        stages = {"source": source, "generated": generated}
        return stages if final is generated else {**stages, "final": final}


def within_class(image: Servable) -> str | None:
    """Return the reason against an image that lies between two classes, or None."""
    return None if image.source_label == image.target_label else WITHIN_CLASS


@dataclass(frozen=True, kw_only=True)
class Part:
    """One of the methods that share a plan, with its context."""

    method: Method
    context: MethodContext

    def is_trial(self, source: Source, variant: int) -> bool:
        """Tell whether the image of a request decides a strength."""
        strengths = self.context.strengths
        return strengths is not None and (source.digest, variant) in strengths.trials


def draw_part(parts: Sequence[Part], rng: np.random.Generator) -> Part:
    """Draw one of several methods by their weights."""
    weights = np.array([part.method.settings.weight for part in parts])
    return parts[int(rng.choice(len(parts), p=weights / weights.sum()))]
