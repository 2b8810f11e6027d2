"""DiffuseMix's masks: which part of an image stays real."""

from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Float

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
