"""What must not reach the cache: images that are no images."""

from jaxtyping import Float
from torch import Tensor

FLAT_LEVELS = 2.0
"""Standard deviation over all pixels, in grey levels of 255, below which an image is blank."""


def rejection(image: Float[Tensor, "3 h w"]) -> str | None:
    """Why an image in [0, 1] is not fit to be used, or None if it is."""
    if not image.isfinite().all():
        return "not finite"
    if image.mean(0).std() * 255 < FLAT_LEVELS:
        return "blank"
    return None
