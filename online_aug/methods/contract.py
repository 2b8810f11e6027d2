"""What every augmentation method provides, and what it is given."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jaxtyping import Float, UInt8
from torch import Tensor

from online_aug.records import GenerationRequest


@dataclass(frozen=True, kw_only=True)
class Source:
    """A real training image as planning sees it: no pixels."""

    digest: str
    label: int


@dataclass(frozen=True, kw_only=True)
class MethodContext:
    """What all requests of one recipe share."""

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

    def plan(
        self, source: Source, variant: int, context: MethodContext, rng: np.random.Generator
    ) -> GenerationRequest:
        """The request of one image; a pure function of its arguments."""
        ...

    def prepare(
        self, images: UInt8[Tensor, "b 3 h w"], requests: Sequence[GenerationRequest]
    ) -> UInt8[Tensor, "b 3 h w"]:
        """What the diffusion model starts from."""
        ...

    def compose(
        self,
        source: Callable[[], UInt8[np.ndarray, "h w 3"]],
        generated: UInt8[np.ndarray, "h2 w2 3"],
        request: GenerationRequest,
        context: MethodContext,
    ) -> tuple[UInt8[np.ndarray, "h3 w3 3"], Float[Tensor, " k"]]:
        """The image the classifier sees and its soft label; cheap, writes into no input.

        Args:
            source: Reads the source image, for a method that needs its pixels.
            generated: What the cache holds for the request.
            request: What was asked for.
            context: What the recipe's requests share.
        """
        ...
