"""Pasting: SGD-Mix's mix itself, made anew for every sample, without a generator."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import numpy as np
from jaxtyping import Bool
from pydantic import Field

from online_aug.methods.base import MethodContext, Picture, PictureOf
from online_aug.methods.foreground_mix import ForegroundMix, ForegroundMixSettings
from online_aug.request import GenerationRequest
from online_aug.settings import Exponent

LARGEST_MASK_PX = 256
"""Largest side at which masks are cut; larger images get these enlarged."""


class PasteSettings(ForegroundMixSettings):
    """The keys of pasting."""

    feather: Annotated[float, Field(ge=0, lt=1), Exponent] = 0.0
    """Width of the blend of source and background outside the seam, fraction of the image; 0 is
    hard."""


class Paste(ForegroundMix):
    """Put the foreground on the background of another image, a new one for every sample."""

    Settings = PasteSettings
    settings: PasteSettings
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "mixing": {"policy": "local", "synthetic_probability": 0.5}
    }
    generates: ClassVar[bool] = False

    def paste(self, image: Picture, mask: Bool[np.ndarray, "h w"], background: Picture) -> None:
        """Write an image into a background under a mask, with the seam that `feather` asks for."""
        radius = round(self.settings.feather * max(mask.shape) / 2)
        if radius:
            background[:] = _blended(image, mask, background, radius)
        else:
            super().paste(image, mask, background)

    def stages(
        self,
        source: Picture,
        generated: Picture,
        request: GenerationRequest,
        context: MethodContext,
        image_of: PictureOf,
        rng: np.random.Generator,
    ) -> Mapping[str, Picture]:
        """Return source, saliency map, union mask, background and their mix."""
        shown = super().stages(source, generated, request, context, image_of, rng)
        before = {name: shown[name] for name in ("source", "saliency", "mask", "target")}
        return {**before, "mixed": generated}

    def mask_side(self, size: tuple[int, int]) -> int:
        """Return the side of the square on which the masks of an image of some size are cut, px."""
        return min(LARGEST_MASK_PX, max(size))


def _blended(
    image: Picture, mask: Bool[np.ndarray, "h w"], background: Picture, radius: int
) -> Picture:
    """Blend in a straight line over twice `radius` px, from the border of the mask outwards.

    So nothing of the background comes through under the mask, where its own object may be.
    """
    import cv2

    size = (2 * radius + 1, 2 * radius + 1)
    wider = cv2.dilate(mask.view(np.uint8), np.ones(size, np.uint8)).astype(np.float32)
    share = cv2.blur(wider, size, borderType=cv2.BORDER_REPLICATE)
    return cv2.blendLinear(np.ascontiguousarray(image), background, share, 1 - share)
