"""The records that planning, generation, the cache and the loader exchange."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Literal, Protocol

from cache.keys import Scalar, request_key

PipelineKind = Literal["image_to_image", "instruct"]
"""Image-to-image of a text-to-image model, or editing by instruction (InstructPix2Pix)."""
StartsFrom = Literal["image", "noise"]
Keeps = Literal["nothing", "foreground", "background"]
SourceFilter = Literal["bilinear", "bicubic"]
"""How a source is brought to the generator's square."""
SPREAD_BYTES = 4
"""Bytes of a source's digest that `GenerationRequest.spread` takes."""


class Servable(Protocol):
    """A generated image as serving sees it, whoever made it."""

    @property
    def key(self) -> bytes:
        """The cache key."""

    @property
    def method(self) -> str:
        """Name of the method that composes and labels it."""

    @property
    def source_digest(self) -> str | None:
        """Digest of the source image; None if it is not known."""

    @property
    def source_label(self) -> int:
        """Class of the source image."""

    @property
    def target_label(self) -> int:
        """Class named in the prompt."""

    @property
    def strength(self) -> float:
        """Fraction of the diffusion trajectory replayed, in (0, 1]."""


@dataclass(frozen=True, kw_only=True)
class ImportedImage:
    """An image that another program made; see `Servable`."""

    key: bytes
    method: str
    source_digest: str | None
    source_label: int
    target_label: int
    strength: float


@dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """All that decides the pixels of one generated image; its digest is the cache key.

    The training seed, the rank, the batch and the clock are not in it, so that another seed or run
    asks for the same image. Adding a field changes every key.
    """

    method: str
    """Name of the method; of a class in a file the name of the class."""
    method_version: int
    """Raised when the method starts to make other pixels from the same fields."""
    code_digest: str | None = None
    """BLAKE2b of the file of a method that does not come with the package; None if it does."""
    source_digest: str
    """BLAKE2b of the source image's content, hexadecimal."""
    source_label: int
    target_label: int
    target_digest: str | None = None
    """Digest of the second (background) image if the method mixes two."""
    prompt: str
    strength: float
    """Fraction of the diffusion trajectory replayed, in (0, 1]."""
    starts_from: StartsFrom = "image"
    """Start of the trajectory: the noised source, or noise alone, so that only its class counts."""
    keeps: Keeps = "nothing"
    """The part that is put back after every step, as noisy as the rest."""
    mask_growth: float = 0.0
    """Window within which the foreground's mask is widened, fraction of the side."""
    guidance_scale: float
    image_guidance_scale: float | None = None
    num_inference_steps: int
    """Steps of the whole trajectory; `int(num_inference_steps * strength)` of them are run, with
    scheduler `lcm` rounded up."""
    scheduler: str
    resolution: int
    """Side of the generated square, px."""
    source_filter: SourceFilter = "bilinear"
    """Filter by which the source, and whatever it is mixed with, is brought to that square."""
    variant: int
    """Number of the image among those of its source, from 0."""
    noise_seed: int
    saliency_version: str | None = None
    gate_version: str | None = None
    """Judges of the image and their rules; None if nothing judges."""
    generator_fingerprint: str
    """Digest of base weights, adapters, dtype and version of the engine."""

    @cached_property
    def key(self) -> bytes:
        """The cache key: 32 bytes, BLAKE2b of the canonical encoding of the fields."""
        return request_key(self.to_fields())

    @property
    def spread(self) -> int:
        """An evenly spread number by source and variant: it decides who makes the image."""
        return int(self.source_digest[: 2 * SPREAD_BYTES], 16) + self.variant

    def to_fields(self) -> dict[str, Scalar]:
        """Return the request as the flat mapping that the cache stores and digests."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_fields(cls, values: Mapping[str, Scalar]) -> "GenerationRequest":
        """Return the request that a cache record carries.

        Raises:
            ValueError: If fields are missing or unknown: the record was made by another version.
        """
        known = {field.name for field in fields(cls)}
        if differing := known ^ set(values):
            differ = ", ".join(sorted(differing))
            raise ValueError(f"request must hold exactly the known fields, differs in: {differ}")
        return cls(**values)  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Numbers of samples in a batch, an epoch or a run; counts of several parts are added."""

    real: int = 0
    """Slots that were planned real."""
    fresh: int = 0
    """Slots with an image that was generated in this run and served for the first time."""
    cached: int = 0
    """Slots with any other generated image."""
    composed: int = 0
    """Slots with training images that were composed without a generator."""
    starved: int = 0
    """Slots that were planned synthetic and got the real image; not counted in `real`."""
    generated: int = 0
    """Images put into the cache."""
    rejected: int = 0
    """Images that the gate refused."""
    restarts: int = 0
    """Times that a generation process died and was started again."""

    @property
    def slots(self) -> int:
        """Images trained on."""
        return self.real + self.synthetic + self.starved

    @property
    def synthetic(self) -> int:
        """Slots with an image that is not a plain training image."""
        return self.fresh + self.cached + self.composed

    @property
    def by_metric(self) -> dict[str, Any]:
        """Slots and generated images by their names in `metrics.jsonl`."""
        kinds = ("real", "fresh", "cached", "composed")
        return {
            **{f"served_{kind}": getattr(self, kind) for kind in kinds},
            "starved": self.starved,
            "generated": self.generated,
        }

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(**{name: n + getattr(other, name) for name, n in vars(self).items()})

    def __sub__(self, other: "Counts") -> "Counts":
        return Counts(**{name: n - getattr(other, name) for name, n in vars(self).items()})
