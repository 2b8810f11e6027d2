"""The mix of SGD-Mix (arXiv:2505.11813): one image's foreground on another one's background.

`ForegroundMix` chooses the background and mixes; what is done with the mix is for its subclasses.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from jaxtyping import Bool, Float, Shaped, UInt8
from pydantic import model_validator

from online_aug.errors import UserError
from online_aug.labels import one_hot
from online_aug.methods.base import (
    Method,
    MethodContext,
    MethodSettings,
    Picture,
    PictureOf,
    Source,
    within_class,
)
from online_aug.request import GenerationRequest, Servable
from online_aug.settings import Count, Fraction, Strength

if TYPE_CHECKING:
    from online_aug.saliency import SaliencyTable

SOURCE_TOO_SMALL = "saliency: source mask too small"
TARGET_TOO_SMALL = "saliency: background's own mask too small"
UNION_TOO_LARGE = "saliency: union mask too large"


class ForegroundMixSettings(MethodSettings):
    """The keys of the mix."""

    candidates: tuple[Count, Count] = (30, 50)
    """Fewest and most images among which a background is looked for (the paper's N)."""
    max_union_share: Strength = 0.7
    """Share of the image that both foregrounds may cover, (0, 1]; 1 allows all of it."""
    min_source_share: Fraction = 0.05
    """Share of the image that its own foreground must cover, in the source and in the background:
    an object that was not found stays where it is, under the source's label."""
    max_draws: Count = 5
    """How often candidates are drawn until the background's own foreground is known, and both
    leave enough background."""

    @model_validator(mode="after")
    def _fewest_come_first(self) -> "ForegroundMixSettings":
        if self.candidates[0] > self.candidates[1]:
            raise ValueError(
                f"method.candidates must be fewest then most, got {list(self.candidates)}"
            )
        return self


class ForegroundMix(Method):
    """Put the foreground of an image on the background of another.

    Of N random images the one becomes the background whose saliency map is nearest to the
    source's: its foreground then lies where the source's does, and is covered by it. The union of
    both masks keeps the source's pixels. The paper does not say whether the background may come
    from the source's class; here it may, since the label does not depend on it.
    """

    Settings = ForegroundMixSettings
    settings: ForegroundMixSettings
    uses_saliency: ClassVar[bool] = True
    keeps_class: ClassVar[bool] = True

    def check_images(self, count: int) -> None:
        """Raise `UserError` if more candidates are asked for than there are other images."""
        if self.settings.candidates[1] > count - 1:
            raise UserError(
                f"method.candidates must be at most {count - 1}, the other training images, "
                f"got {list(self.settings.candidates)}"
            )

    def plan(
        self, source: Source, variant: int, context: MethodContext, rng: np.random.Generator
    ) -> GenerationRequest:
        """Draw the background, and before it what `drawn` and the noise take.

        Raises:
            ValueError: If the context has no saliency table, or the source is not in it.
        """
        table = saliency_table(context, self.name)
        drawn = {**self.drawn(source, variant, context, rng), "saliency_version": table.version}
        request = self.request(source, variant, context, rng, **drawn)
        background = self.draw_background(table, table.place(source.digest), rng)
        return replace(request, target_digest=table.digests[background])

    def drawn(
        self, source: Source, variant: int, context: MethodContext, rng: np.random.Generator
    ) -> dict[str, Any]:
        """Draw the fields of a request that a subclass decides."""
        return {}

    def draw_background(self, table: "SaliencyTable", source: int, rng: np.random.Generator) -> int:
        """Return the nearest of some candidates, drawn again while it cannot be used."""
        fewest, most = self.settings.candidates
        for _ in range(self.settings.max_draws):
            count = int(rng.integers(fewest, most + 1))
            drawn = rng.choice(len(table) - 1, count, replace=False, shuffle=False)
            background = table.nearest(source, drawn + (drawn >= source))  # never the source itself
            if self._background_fault(table, source, background) is None:
                break
        return background

    def _background_fault(self, table: "SaliencyTable", source: int, background: int) -> str | None:
        if table.source_share(background) < self.settings.min_source_share:
            return TARGET_TOO_SMALL
        if table.union_share(source, background) > self.settings.max_union_share:
            return UNION_TOO_LARGE
        return None

    def refusal(self, request: GenerationRequest, context: MethodContext) -> str | None:
        """Return why not to mix: a foreground was not found, or no background is left.

        The paper's break conditions are the source's foreground and the background that is left.
        """
        table = saliency_table(context, self.name)
        source, background = (table.place(digest) for digest in _digests(request))
        return self.fault(table, source, background)

    def fault(self, table: "SaliencyTable", source: int, background: int) -> str | None:
        """Return why an image of a table cannot be mixed with another; None if it can."""
        if table.source_share(source) < self.settings.min_source_share:
            return SOURCE_TOO_SMALL
        return self._background_fault(table, source, background)

    def prepare(
        self,
        images: UInt8[np.ndarray, "b h w 3"],
        requests: Sequence[GenerationRequest],
        context: MethodContext,
        image_of: PictureOf,
    ) -> UInt8[np.ndarray, "b h w 3"]:
        """Mix: the source under either mask, the background elsewhere."""
        masks = self.union_masks(requests, context, images.shape[1:3])
        backgrounds = [image_of(_digests(request)[1]) for request in requests]
        mixed = np.ascontiguousarray(np.stack(backgrounds))  # a stack keeps the layout of its parts
        for image, mask, background in zip(images, masks, mixed, strict=True):
            self.paste(image, mask, background)
        return mixed

    def paste(self, image: Picture, mask: Bool[np.ndarray, "h w"], background: Picture) -> None:
        """Write an image into a background under a mask."""
        import cv2  # a hundred times faster than NumPy here

        cv2.copyTo(np.ascontiguousarray(image), mask.view(np.uint8), background)

    def union_masks(
        self, requests: Sequence[GenerationRequest], context: MethodContext, size: tuple[int, int]
    ) -> Bool[np.ndarray, "b h w"]:
        """Mark the pixels at which the source or the background shows its own foreground.

        Args:
            requests: They name source and background.
            context: Has the masks.
            size: Height and width, px.
        """
        pairs = [digest for request in requests for digest in _digests(request)]
        masks = saliency_table(context, self.name).masks(pairs, self.mask_side(size))
        return stretched(masks[0::2] | masks[1::2], size)

    def mask_side(self, size: tuple[int, int]) -> int:
        """Return the side of the square on which the masks of an image of some size are cut, px."""
        return max(size)

    def compose(
        self,
        source: Callable[[], Picture],
        generated: Picture,
        request: Servable,
        context: MethodContext,
        rng: np.random.Generator,
    ) -> tuple[Picture, Float[np.ndarray, " k"]]:
        """Return the image as it is with the source's label."""
        return generated, one_hot(request.source_label, context.num_classes)

    def misfit(self, image: Servable) -> str | None:
        """Return the reason against an image between two classes."""
        return within_class(image)

    def stages(
        self,
        source: Picture,
        generated: Picture,
        request: GenerationRequest,
        context: MethodContext,
        image_of: PictureOf,
        rng: np.random.Generator,
    ) -> Mapping[str, Picture]:
        """Return source, saliency map, union mask, background, their mix, and the result."""
        start, table = image_of(request.source_digest), saliency_table(context, self.name)
        size = start.shape[:2]
        saliency = table.large_maps([request.source_digest], max(size)).numpy()
        mask = self.union_masks([request], context, size)
        mixed = self.prepare(start[None], [request], context, image_of)
        return {
            "source": source,
            "saliency": _grey((stretched(saliency, size)[0] * 255).astype(np.uint8)),
            "mask": _grey(mask[0].astype(np.uint8) * 255),
            "target": image_of(_digests(request)[1]),
            "mixed": mixed[0],
            "generated": generated,
        }


def source_masks(
    requests: Sequence[GenerationRequest], context: MethodContext, side: int
) -> Bool[np.ndarray, "b s s"]:
    """Mark the pixels at which the source shows its foreground."""
    digests = [request.source_digest for request in requests]
    return saliency_table(context, requests[0].method).masks(digests, side)


def widened(mask: Bool[np.ndarray, "s s"], window_px: int) -> Bool[np.ndarray, "s s"]:
    """Mark all pixels with a marked one in the square window around them."""
    if window_px <= 1:
        return mask
    import cv2

    window = np.ones((window_px, window_px), np.uint8)
    return np.asarray(cv2.dilate(mask.astype(np.uint8), window).astype(np.bool_))


def stretched(
    values: Shaped[np.ndarray, "b s s"], size: tuple[int, int]
) -> Shaped[np.ndarray, "b h w"]:
    """Stretch squares to a height and width in px; the value of a pixel is that at its centre."""
    side = values.shape[1]
    if size == (side, side):
        return values
    rows, columns = ((2 * np.arange(n) + 1) * side // (2 * n) for n in size)
    return np.asarray(values.take(rows, axis=1).take(columns, axis=2))


def saliency_table(context: MethodContext, name: str) -> "SaliencyTable":
    """Return the foregrounds of all training images.

    Raises:
        ValueError: If there are none.
    """
    if context.saliency is None:
        raise ValueError(f"context.saliency must be a table for {name}, got None")
    return context.saliency


def _digests(request: GenerationRequest) -> tuple[str, str]:
    if request.target_digest is None:
        name = request.method
        raise ValueError(f"request.target_digest must name the background of {name}, got None")
    return request.source_digest, request.target_digest


def _grey(values: UInt8[np.ndarray, "h w"]) -> Picture:
    return np.repeat(values[..., None], 3, axis=2)
