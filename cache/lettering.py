"""Letters on pictures: Pillow's own face, so that a sheet is the same on every machine."""

from functools import cache

from PIL import ImageFont

from cache.errors import CacheError


@cache
def font(size_px: int) -> ImageFont.FreeTypeFont:
    """The face at that size.

    Raises:
        CacheError: If Pillow was built without FreeType.
    """
    face = ImageFont.load_default(size_px)
    if not isinstance(face, ImageFont.FreeTypeFont):
        raise CacheError("Pillow must be built with FreeType to draw letters; reinstall pillow")
    return face


def cut(text: str, size_px: int, width_px: int) -> str:
    """`text`, or as much of its start as fits into that width, with dots."""
    if font(size_px).getlength(text) <= width_px:
        return text
    kept = text
    while kept and font(size_px).getlength(kept + "...") > width_px:
        kept = kept[:-1]
    return kept.rstrip() + "..."
