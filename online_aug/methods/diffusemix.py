"""DiffuseMix (arXiv:2405.14881): part of an image edited by an instruction, and a fractal over all.

Only the edit is generated and cached. Mask and fractal are drawn when the image is served, so one
generated image gives every mask with every fractal.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, ClassVar, Literal, Protocol

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image
from pydantic import Field

from online_aug.labels import one_hot
from online_aug.methods.base import (
    Method,
    MethodContext,
    MethodSettings,
    Picture,
    PictureOf,
    SharedSections,
    Source,
    within_class,
)
from online_aug.methods.fractals import FractalBank, bank_of
from online_aug.request import GenerationRequest, PipelineKind, Servable, SourceFilter
from online_aug.settings import Exponent, Fraction, Text, decided

OBJECT_PX = 64
"""Side of the grid on which it is counted how much of the object a mask leaves real."""
LARGEST_FRACTAL_PX = 256
"""Side of the kept fractals unless `fractals.side_px` is given, if images are larger."""
Mask = Literal["left", "right", "top", "bottom", "centre", "rim", "none"]


class DiffuseMixSettings(MethodSettings):
    """The keys of DiffuseMix."""

    prompts: Annotated[tuple[Text, ...], Field(min_length=1)] = (
        "autumn",
        "snowy",
        "watercolor art",
        "sunset",
        "rainbow",
        "aurora",
        "mosaic",
        "ukiyo-e",
        "a sketch with crayon",
    )
    """The instructions; the default is the paper's nine."""
    template: Annotated[str, Field(pattern=r"\{prompt\}")] = (
        "A transformed version of image into {prompt}"
    )
    """The text that the model reads; `{prompt}` alone is the released code's."""
    prompt_choice: Literal["random", "all"] = "random"
    """A random prompt for each image (paper), or each in turn (released code)."""
    masks: Annotated[tuple[Mask, ...], Field(min_length=1)] = ("left", "right", "top", "bottom")
    """The part that stays real, one drawn each time; `centre` and `rim` are GenMix's; `[none]`
    leaves nothing real (the paper's ablation without concatenation)."""
    seam: Fraction = 0.0
    """Width of the blend at the border, fraction of the image; 0 is hard (paper)."""
    fractal_weight: Annotated[float, Field(ge=0, lt=1), Exponent] = 0.2
    """Share of the fractal in the final image, the paper's lambda; 0 blends none in and makes none
    (its ablation without fractals)."""
    source_filter: SourceFilter = "bicubic"
    """Filter by which the source is made the square that is edited; the released code has
    Pillow's default, which is bicubic."""
    keeps_object: bool = False
    """Take the mirror image of the drawn mask if that leaves more of the object real; `saliency`
    says where the object is. The paper draws masks blindly."""


class Pictures(Protocol):
    """Pictures by number, such as a bank of fractals."""

    def __len__(self) -> int:
        """Return the number of pictures."""
        ...

    def __getitem__(self, index: int) -> np.ndarray:
        """Return one picture, `h w 3`, uint8."""
        ...


class DiffuseMix(Method):
    """Edit the whole image by an instruction; blend the edit, the source and a fractal."""

    Settings = DiffuseMixSettings
    settings: DiffuseMixSettings
    pipeline: ClassVar[PipelineKind] = "instruct"
    uses_finetuning: ClassVar[bool] = False
    keeps_class: ClassVar[bool] = True

    @property
    def needs_saliency(self) -> bool:
        """Whether masks are chosen by where the object is."""
        return self.settings.keeps_object

    def check(self, config: SharedSections) -> None:
        """Raise `ValueError` if guidance is off, or the prompts do not come up equally often."""
        generation, prompts = config.generation, len(self.settings.prompts)
        if generation.guidance_scale == 1:  # diffusers would leave the image's guidance out too
            raise ValueError("generation.guidance_scale must be above 1 for diffusemix, got 1")
        if self.settings.prompt_choice == "all" and generation.variants_per_image % prompts:
            raise ValueError(
                "generation.variants_per_image must be a multiple of the number of "
                "method.prompts with method.prompt_choice all, "
                f"got {generation.variants_per_image} for {prompts}"
            )

    def resources(self, config: SharedSections) -> FractalBank | None:
        """Find the fractals to blend in, if any are."""
        if self.settings.fractal_weight == 0:
            return None
        side = config.fractals.side_px or min(
            decided(config.generation.resolution), LARGEST_FRACTAL_PX
        )
        return bank_of(config.fractals, side)

    def plan(
        self, source: Source, variant: int, context: MethodContext, rng: np.random.Generator
    ) -> GenerationRequest:
        """Draw instruction and noise; the class stays."""
        prompts = self.settings.prompts
        drawn = int(rng.integers(len(prompts)))
        chosen = variant % len(prompts) if self.settings.prompt_choice == "all" else drawn
        return self.request(
            source,
            variant,
            context,
            rng,
            prompt=self._instruction(prompts[chosen]),
            image_guidance_scale=context.image_guidance_scale,
        )

    def prompts(self, context: MethodContext) -> Sequence[str]:
        """Return the instructions."""
        return [self._instruction(prompt) for prompt in self.settings.prompts]

    def compose(
        self,
        source: Callable[[], Picture],
        generated: Picture,
        request: Servable,
        context: MethodContext,
        rng: np.random.Generator,
    ) -> tuple[Picture, Float[np.ndarray, " k"]]:
        """Blend source, edit and fractal at the source's size; the label is the source's."""
        mask = self._draw_mask(request, context, rng)
        final = self._blend(source(), generated, mask, context.resources, rng)["final"]
        return final, one_hot(request.source_label, context.num_classes)

    def misfit(self, image: Servable) -> str | None:
        """Return the reason against an image whose source is not known or of another class."""
        if image.source_digest is None:
            return "its source image is not known, which diffusemix blends it with"
        return within_class(image)

    def caption(self, request: GenerationRequest) -> str | None:
        """Return the configured word of the instruction."""
        words = {self._instruction(prompt): prompt for prompt in self.settings.prompts}
        return words.get(request.prompt)

    def stages(
        self,
        source: Picture,
        generated: Picture,
        request: GenerationRequest,
        context: MethodContext,
        image_of: PictureOf,
        rng: np.random.Generator,
    ) -> Mapping[str, Picture]:
        """Return the pictures of the paper's figure 3: source, edit, mask, fractal, result."""
        mask = self._draw_mask(request, context, rng)
        return self._blend(source, generated, mask, context.resources, rng)

    def _draw_mask(
        self, request: Servable, context: MethodContext, rng: np.random.Generator
    ) -> str:
        """Draw a mask; its mirror image if more of the object is under that, on request."""
        masks = self.settings.masks
        drawn = masks[int(rng.integers(len(masks)))]
        if not self.settings.keeps_object or request.source_digest is None:
            return drawn
        if context.saliency is None:
            raise ValueError("context.saliency must be a table for method.keeps_object, got None")
        (foreground,) = context.saliency.masks([request.source_digest], OBJECT_PX)
        seam, other = self.settings.seam, MIRRORED[drawn]
        real, mirrored = (
            float(source_share(mask, OBJECT_PX, OBJECT_PX, seam=seam)[foreground].sum())
            for mask in (drawn, other)
        )
        return drawn if real >= mirrored else other

    def _instruction(self, prompt: str) -> str:
        return self.settings.template.replace("{prompt}", prompt)

    def _blend(
        self,
        source: Picture,
        generated: Picture,
        mask: str,
        fractals: Pictures | None,
        rng: np.random.Generator,
    ) -> dict[str, Picture]:
        settings = self.settings
        height, width = source.shape[:2]
        share = source_share(mask, height, width, seam=settings.seam)[..., None]
        edit = _resized(generated, height, width)
        shown = {
            "source": source,
            "generated": edit,
            "mask": np.repeat(_rounded(share * 255), 3, axis=2),
        }
        hybrid = share * source + (1 - share) * edit
        if fractals is None:
            return {**shown, "final": _rounded(hybrid)}
        pattern = _resized(fractals[int(rng.integers(len(fractals)))], height, width)
        weight = np.float32(settings.fractal_weight)
        final = (1 - weight) * hybrid + weight * pattern
        return {**shown, "fractal": pattern, "final": _rounded(final)}


def _resized(image: Picture, height: int, width: int) -> Picture:
    if image.shape[:2] == (height, width):
        return image
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(resized)


def _rounded(values: Float[np.ndarray, "h w c"]) -> UInt8[np.ndarray, "h w c"]:
    # To the nearest byte: cutting off would darken every image by half a level.
    return np.asarray(values + 0.5).astype(np.uint8)


def source_share(mask: str, height: int, width: int, *, seam: float) -> Float[np.ndarray, "h w"]:
    """Return the share of the source in every pixel, in [0, 1].

    Args:
        mask: Name in `MASKS`: the part that shows the source; or `none`.
        height: Height of the image, px.
        width: Width of the image, px.
        seam: Width of the transition from source to generated image as a fraction of the image; 0
            makes every pixel the one or the other. A mask and its mirror image then share no pixel
            and leave none out: the middle of an odd side belongs to the right and the bottom half.
    """
    if mask == "none":
        return np.zeros((height, width), np.float32)
    if mask in _COMPLEMENTS:
        return 1 - source_share(MIRRORED[mask], height, width, seam=seam)
    y = (np.arange(height)[:, None] + 0.5) / height
    x = (np.arange(width)[None, :] + 0.5) / width
    inside = np.broadcast_to(MASKS[mask](y, x), (height, width))
    if seam == 0:
        return (inside > 0).astype(np.float32)
    return np.clip(0.5 + inside / seam, 0, 1).astype(np.float32)


def _centre(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    # A disc (an ellipse if the image is not square) of half of the image's area.
    return np.asarray(np.sqrt(1 / (2 * np.pi)) - np.hypot(y - 0.5, x - 0.5))


MASKS: Mapping[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "left": lambda y, x: 0.5 - x,
    "right": lambda y, x: x - 0.5,
    "top": lambda y, x: 0.5 - y,
    "bottom": lambda y, x: y - 0.5,
    "centre": _centre,
    "rim": lambda y, x: -_centre(y, x),
}
"""Signed distance of a place (y, x) from the border of the real part, in sides of the image.

Four halves (DiffuseMix), a disc and what is around it (GenMix, arXiv:2412.02366).
"""

MIRRORED: Mapping[str, str] = {
    "left": "right",
    "right": "left",
    "top": "bottom",
    "bottom": "top",
    "centre": "rim",
    "rim": "centre",
    "none": "none",
}
"""The mask that shows the source where another one does not."""
_COMPLEMENTS = ("right", "bottom", "rim")
