"""How faithful generated images are to their class, and how diverse.

Each is compared with its nearest neighbour: the nearest real image of its class, and the nearest
other generated one. The distances between real images of the class are the yardstick. Distances are
between small copies of the images, or by the features of a CLIP model.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from online_aug.data.transforms import fit_square
from online_aug.generation.clip import ClipFeatures
from online_aug.methods import Picture

SIDE_PX = 32
"""Side of the small copies."""
CLIP_SCALE = 2.5
"""Factor of CLIPScore (arXiv:2104.08718)."""
Features = Callable[[Sequence[Picture]], Float[Tensor, "n f"]]
"""Makes a row for each image; distances are those between rows."""


@dataclass(frozen=True, kw_only=True)
class ImageQuality:
    """Means over images; None if a class has too few images to say."""

    images: int
    """Number of generated images."""
    to_real: float
    """Distance of a generated image to the nearest real one of its class."""
    between_real: float | None
    """Distance of a real image to the nearest other real one of its class."""
    between_generated: float | None
    """Distance of a generated image to the nearest other generated one of its class."""
    clip_score: float | None = None
    """CLIPScore of the generated images for `a photo of a CLASS`; None without a CLIP model."""
    clip_score_real: float | None = None
    """The same of the real images."""


def small_copies(pictures: Sequence[Picture]) -> Float[Tensor, "n f"]:
    """Return the pixels of small copies, scaled so that distances are root mean squares in [0, 1].

    The distance of two images so is what their pixels differ by, where 1 is black against white.
    """
    rows = [
        fit_square(torch.from_numpy(np.array(one)).permute(2, 0, 1), SIDE_PX).float().flatten()
        for one in pictures
    ]
    scale: float = 255 * (3 * SIDE_PX**2) ** 0.5
    return torch.stack(rows) / scale


def judge_class(
    name: str,
    real: Sequence[Picture],
    generated: Sequence[Picture],
    clip: ClipFeatures | None = None,
) -> ImageQuality:
    """Judge the generated images of a class.

    Args:
        name: Name of the class, which CLIP is asked for.
        real: At least one real image.
        generated: At least one generated image.
        clip: Whose features to take; None takes small copies.
    """
    features: Features = small_copies if clip is None else clip.of_images
    ours, theirs = features(generated), features(real)
    text = None if clip is None else clip.of_texts([f"a photo of a {name}"])[0]
    return ImageQuality(
        images=len(ours),
        to_real=float(_distances(ours, theirs, clip).min(1).values.mean()),
        between_real=_among(theirs, clip),
        between_generated=_among(ours, clip),
        clip_score=None if text is None else _score(ours, text),
        clip_score_real=None if text is None else _score(theirs, text),
    )


def overall(classes: Mapping[str, ImageQuality]) -> ImageQuality:
    """Return the means over classes, all of which count alike, and the sum of their images."""
    means = {
        name: _mean([getattr(one, name) for one in classes.values()])
        for name in (
            "to_real",
            "between_real",
            "between_generated",
            "clip_score",
            "clip_score_real",
        )
    }
    to_real = means.pop("to_real")
    assert to_real is not None  # every class has it
    return ImageQuality(
        images=sum(one.images for one in classes.values()), to_real=to_real, **means
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _score(rows: Float[Tensor, "n f"], text: Float[Tensor, " f"]) -> float:
    return float(CLIP_SCALE * (rows @ text).clamp(min=0).mean())


def _among(rows: Float[Tensor, "n f"], clip: ClipFeatures | None) -> float | None:
    if len(rows) < 2:
        return None
    apart = _distances(rows, rows, clip).fill_diagonal_(float("inf"))
    return float(apart.min(1).values.mean())


def _distances(
    first: Float[Tensor, "n f"], second: Float[Tensor, "m f"], clip: ClipFeatures | None
) -> Float[Tensor, "n m"]:
    if clip is not None:
        return 1 - first @ second.T
    exact = "donot_use_mm_for_euclid_dist"  # by products, equal images are not at distance 0
    return torch.cdist(first, second, compute_mode=exact)
