"""SGD-Mix (arXiv:2505.11813): the source's foreground on another image's background, refined."""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Bool

from online_aug.methods.adaptive import StrengthSettings, draw_strength
from online_aug.methods.base import MethodContext, SharedSections, Source
from online_aug.methods.foreground_mix import ForegroundMix, ForegroundMixSettings, source_masks
from online_aug.request import GenerationRequest


class SgdMixSettings(ForegroundMixSettings, StrengthSettings):
    """The keys of SGD-Mix."""

    keeps_foreground: bool = False
    """Put the source's foreground back after every step of the refinement, and its own pixels in
    the end, so that only the rest is drawn anew; the paper's refinement draws all of it."""


class SgdMix(ForegroundMix):
    """Put the foreground on the background of another image, then translate within the class."""

    Settings = SgdMixSettings
    settings: SgdMixSettings
    version: ClassVar[int] = 2

    def check(self, config: SharedSections) -> None:
        """Raise `ValueError` if a strength would run no step."""
        self.settings.check_steps(config)

    def drawn(
        self, source: Source, variant: int, context: MethodContext, rng: np.random.Generator
    ) -> dict[str, Any]:
        """Draw the strength."""
        label = source.label
        return {
            "strength": draw_strength(self.settings, source, variant, label, context, rng),
            "keeps": "foreground" if self.settings.keeps_foreground else "nothing",
        }

    def kept(
        self, requests: Sequence[GenerationRequest], context: MethodContext, side: int
    ) -> Bool[np.ndarray, "b s s"]:
        """Mark the source's own mask if it is to be kept.

        Source pixels that only cover the background's foreground may be drawn anew.
        """
        keeps = np.array([request.keeps == "foreground" for request in requests])
        if not keeps.any():
            return super().kept(requests, context, side)
        return np.asarray(source_masks(requests, context, side) & keeps[:, None, None])
