"""DiffuseMix (arXiv:2405.14881): part of an image edited by an instruction, and a fractal over all.

Only the edit is generated and cached. Mask and fractal are drawn when it is read, so one generated
image gives every mask with every fractal.

DiffuseMix's masks: which part of an image stays real.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from torch import Tensor

from online_aug.methods.base import WITHIN_CLASS, ImageOf, MethodContext, Picture, Source, nowhere
from online_aug.request import GenerationRequest, Servable


class Pictures(Protocol):
    """Pictures by number, such as a bank that is read where it is used."""

    def __len__(self) -> int:
        """How many there are."""
        ...

    def __getitem__(self, index: int) -> np.ndarray:
        """One picture, `h w 3`, uint8."""
        ...


@dataclass(frozen=True, kw_only=True)
class DiffuseMixSettings:
    """What DiffuseMix needs to know beside what all methods share."""

    instructions: tuple[str, ...]
    """Prompts as the model reads them, the template applied."""
    takes_all: bool
    """Each source with every instruction in turn (released code), or with random ones (paper)."""
    image_guidance_scale: float
    masks: tuple[str, ...]
    seam: float
    """Width of the seam, fraction of the image; 0 is hard (paper)."""
    fractal_weight: float
    """The paper's lambda, [0, 1)."""
    fractals: Pictures


class DiffuseMix:
    """An edit of the whole image, blended with the source when it is read."""

    version: ClassVar[int] = 1
    pipeline: ClassVar[Literal["instruct"]] = "instruct"
    uses_saliency: ClassVar[bool] = False
    uses_finetuning: ClassVar[bool] = False

    def plan(
        self, source: Source, variant: int, context: MethodContext, rng: np.random.Generator
    ) -> GenerationRequest:
        """Draw instruction and noise; the class stays."""
        settings = _settings(context)
        drawn = int(rng.integers(len(settings.instructions)))
        chosen = variant % len(settings.instructions) if settings.takes_all else drawn
        return GenerationRequest(
            method="diffusemix",
            method_version=self.version,
            source_digest=source.digest,
            source_label=source.label,
            target_label=source.label,
            prompt=settings.instructions[chosen],
            strength=1.0,
            guidance_scale=context.guidance_scale,
            image_guidance_scale=settings.image_guidance_scale,
            num_inference_steps=context.num_inference_steps,
            scheduler=context.scheduler,
            resolution=context.resolution,
            variant=variant,
            noise_seed=int(rng.integers(2**63)),
            generator_fingerprint=context.generator_fingerprint,
        )

    def refusal(self, request: GenerationRequest, context: MethodContext) -> None:
        """None: every image can be edited."""

    def prepare(
        self,
        images: UInt8[Tensor, "b 3 h w"],
        requests: Sequence[GenerationRequest],
        context: MethodContext,
        image_of: ImageOf,
    ) -> UInt8[Tensor, "b 3 h w"]:
        """The source images as they are."""
        return images

    def misfit(self, image: Servable) -> str | None:
        """An edit is blended with its source, which has to be known, and keeps the class."""
        if image.source_digest is None:
            return "its source image is not known, which diffusemix blends it with"
        return None if image.source_label == image.target_label else WITHIN_CLASS

    def foreground(
        self, requests: Sequence[GenerationRequest], context: MethodContext, side: int
    ) -> Bool[Tensor, "b s s"]:
        """Nowhere."""
        return nowhere(len(requests), side)

    def compose(
        self,
        source: Callable[[], Picture],
        generated: Picture,
        request: Servable,
        context: MethodContext,
        rng: np.random.Generator,
    ) -> tuple[Picture, Float[Tensor, " k"]]:
        """Part source, part edit, a fractal over both; at the source's size, with its label."""
        final = _blended(source(), generated, _settings(context), rng)["final"]
        label = F.one_hot(torch.tensor(request.source_label), context.num_classes).float()
        return final, label

    def stages(
        self,
        source: Picture,
        generated: Picture,
        request: GenerationRequest,
        context: MethodContext,
        image_of: ImageOf,
        rng: np.random.Generator,
    ) -> Mapping[str, Picture]:
        """The pictures of the paper's figure 3: source, edit, mask, fractal, result."""
        return _blended(source, generated, _settings(context), rng)


def _blended(
    source: Picture, generated: Picture, settings: DiffuseMixSettings, rng: np.random.Generator
) -> dict[str, Picture]:
    height, width = source.shape[:2]
    mask = settings.masks[int(rng.integers(len(settings.masks)))]
    fractal = settings.fractals[int(rng.integers(len(settings.fractals)))]
    share = source_share(mask, height, width, seam=settings.seam)[..., None]
    edit, pattern = _resized(generated, height, width), _resized(fractal, height, width)
    weight = np.float32(settings.fractal_weight)
    hybrid = share * source + (1 - share) * edit
    final = (1 - weight) * hybrid + weight * pattern
    return {
        "source": source,
        "generated": edit,
        "mask": np.repeat(_rounded(share * 255), 3, axis=2),
        "fractal": pattern,
        "final": _rounded(final),
    }


def _settings(context: MethodContext) -> DiffuseMixSettings:
    assert isinstance(context.settings, DiffuseMixSettings)  # the experiment fills it in
    return context.settings


def _resized(image: Picture, height: int, width: int) -> Picture:
    if image.shape[:2] == (height, width):
        return image
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(resized)


def _rounded(values: Float[np.ndarray, "h w c"]) -> UInt8[np.ndarray, "h w c"]:
    """To the nearest byte: cutting off would darken every image by half a level."""
    return np.asarray(values + 0.5).astype(np.uint8)


Inside = Float[np.ndarray, "h w"]
"""How far each pixel lies inside the real part, in sides of the image; negative outside of it."""


def source_share(mask: str, height: int, width: int, *, seam: float) -> Float[np.ndarray, "h w"]:
    """Share of the source in every pixel of one mask, in [0, 1].

    Args:
        mask: Name in `MASKS`: where the source is.
        height: Of the image, px.
        width: Of the image, px.
        seam: Width of the change from source to generated image as a fraction of the image across
            it; 0 makes every pixel the one or the other.
    """
    y = (np.arange(height)[:, None] + 0.5) / height
    x = (np.arange(width)[None, :] + 0.5) / width
    inside = np.broadcast_to(MASKS[mask](y, x), (height, width))
    if seam == 0:
        return (inside > 0).astype(np.float32)
    return np.clip(0.5 + inside / seam, 0, 1).astype(np.float32)


def _centre(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """A disc, an ellipse where the image is not square, of half the image's area."""
    return np.asarray(np.sqrt(1 / (2 * np.pi)) - np.hypot(y - 0.5, x - 0.5))


MASKS: Mapping[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "left": lambda y, x: 0.5 - x,
    "right": lambda y, x: x - 0.5,
    "top": lambda y, x: 0.5 - y,
    "bottom": lambda y, x: y - 0.5,
    "centre": _centre,
    "rim": lambda y, x: -_centre(y, x),
}
"""Four halves (DiffuseMix), a disc and what is around it (GenMix, arXiv:2412.02366)."""
