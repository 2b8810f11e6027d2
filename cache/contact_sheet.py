"""Sheets of images with captions, drawn into a PNG file.

`draw_sheet` draws generated images beside their sources and their requests. Its parts (colours,
font, scaling) serve other sheets too, so that all sheets look alike on every machine.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from io import BytesIO

import numpy as np
import PIL.Image
from PIL import ImageDraw, ImageFont

from cache.codecs import Pixels
from cache.errors import CacheError
from cache.keys import Scalar
from cache.text import printable

PAPER, INK, FAINT, LINE = "#ffffff", "#1f2430", "#7a8190", "#e3e6ec"
"""Colours of the background, of important and of other text, and of frames."""

_SMALLEST_PX, _LARGEST_PX = 160, 256
_MARGIN, _GAP, _TITLE_HEIGHT, _CAPTION_WIDTH = 24, 16, 44, 300
_TITLE_PX, _TEXT_PX, _LINE_HEIGHT, _MAX_LINES = 20, 14, 19, 12
_MAX_CAPTION_CHARACTERS = 400
_ONE_COLUMN_CELLS = 4
"""Up to so many cells stand in one column, more in two."""

_FIRST_FIELDS = ("strength", "prompt")
_HIDDEN_FIELDS = frozenset(
    {
        *("method", "source_label", "target_label", "source_class", "target_class"),
        *("source_digest", "generator_fingerprint", "method_version", "image_digest"),
    }
)
"""Request fields that the first lines of a caption tell, or that mean nothing to a reader."""


@dataclass(frozen=True, eq=False)
class Cell:
    """One generated image, its source and its caption."""

    generated: Pixels
    source: Pixels | None
    """None if it was not found."""
    caption: Sequence[str]
    """Lines of text beside the images."""


@dataclass(frozen=True)
class _Layout:
    side: int
    images_per_cell: int
    cell_height: int
    columns: int

    @property
    def caption_x(self) -> int:
        return self.images_per_cell * (self.side + _GAP)

    @property
    def cell_width(self) -> int:
        return self.caption_x + _CAPTION_WIDTH

    def size(self, count: int) -> tuple[int, int]:
        rows = -(-count // self.columns)
        width = self.columns * (self.cell_width + _GAP) - _GAP + 2 * _MARGIN
        return width, _MARGIN + _TITLE_HEIGHT + rows * self.cell_height + _MARGIN

    def corner(self, number: int) -> tuple[int, int]:
        row, column = divmod(number, self.columns)
        x = _MARGIN + column * (self.cell_width + _GAP)
        return x, _MARGIN + _TITLE_HEIGHT + row * self.cell_height


def draw_sheet(cells: Sequence[Cell], title: str, *, has_sources: bool) -> bytes:
    """Draw at least one cell into a PNG file, with a column of source images or without.

    Small images are enlarged without smoothing, so that every pixel stays visible.
    """
    images = [_images(cell, has_sources) for cell in cells]
    captions = [_lines(cell) for cell in cells]
    side = max(max(image.size) for row in images for image in row if image is not None)
    layout = _Layout(
        side=side,
        images_per_cell=1 + has_sources,
        cell_height=max(side, _LINE_HEIGHT * max(map(len, captions))) + _GAP,
        columns=1 if len(cells) <= _ONE_COLUMN_CELLS else 2,
    )
    sheet = PIL.Image.new("RGB", layout.size(len(cells)), PAPER)
    draw = ImageDraw.Draw(sheet)
    heading = shortened(title, _TITLE_PX, sheet.width - 2 * _MARGIN)
    draw.text((_MARGIN, _MARGIN - 4), heading, INK, font(_TITLE_PX))
    for number, (row, lines) in enumerate(zip(images, captions, strict=True)):
        x, y = layout.corner(number)
        _draw_images(sheet, (x, y), layout.side, row)
        _draw_caption(draw, (x + layout.caption_x, y), lines)
    return png_file(sheet)


def caption_of(
    request: Mapping[str, Scalar], source_class: str | None, target_class: str | None
) -> list[str]:
    """Tell a request in lines: its method, its classes, then everything else that was set."""
    names = [source_class or "unknown", target_class or "unknown"]
    lines = [str(request.get("method", "no method"))]
    if names != ["unknown", "unknown"]:
        lines.append(names[0] if names[0] == names[1] else f"{names[0]} to {names[1]}")
    shown = {name: request[name] for name in (*_FIRST_FIELDS, *request) if name in request}
    return lines + [
        f"{name.replace('_', ' ')}: {value}"
        for name, value in shown.items()
        if name not in _HIDDEN_FIELDS and value is not None
    ]


def scaled(image: Pixels, smallest_px: int, largest_px: int) -> PIL.Image.Image:
    """Scale an image so that its longer side has `smallest_px` to `largest_px`, about.

    A smaller image grows by a whole factor, its pixels kept; a larger one is reduced.
    """
    picture = PIL.Image.fromarray(np.ascontiguousarray(image))
    longest = max(picture.size)
    if longest > largest_px:
        picture.thumbnail((largest_px, largest_px), PIL.Image.Resampling.LANCZOS)
        return picture
    factor = -(-smallest_px // longest)
    size = (picture.width * factor, picture.height * factor)
    return picture.resize(size, PIL.Image.Resampling.NEAREST)


@cache
def font(size_px: int) -> ImageFont.FreeTypeFont:
    """Return Pillow's own font, which is the same on every machine.

    Raises:
        CacheError: If Pillow was built without FreeType.
    """
    face = ImageFont.load_default(size_px)
    if not isinstance(face, ImageFont.FreeTypeFont):
        raise CacheError("Pillow must be built with FreeType to draw letters; reinstall pillow")
    return face


def shortened(text: str, size_px: int, width_px: int) -> str:
    """Cut `text` to a width and end it with dots, if it is wider in that font size."""
    if font(size_px).getlength(text) <= width_px:
        return text
    kept = text
    while kept and font(size_px).getlength(kept + "...") > width_px:
        kept = kept[:-1]
    return kept.rstrip() + "..."


def png_file(sheet: PIL.Image.Image) -> bytes:
    """Encode a drawn sheet as a PNG file."""
    buffer = BytesIO()
    sheet.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def small_picture(image: Pixels, longest_px: int) -> bytes:
    """Encode an image, reduced to `longest_px` if it is larger, as a lossy WebP file."""
    buffer = BytesIO()
    scaled(image, 1, longest_px).save(buffer, "WEBP", quality=85)
    return buffer.getvalue()


def _images(cell: Cell, has_sources: bool) -> list[PIL.Image.Image | None]:
    generated = scaled(cell.generated, _SMALLEST_PX, _LARGEST_PX)
    if not has_sources:
        return [generated]
    source = None if cell.source is None else scaled(cell.source, _SMALLEST_PX, _LARGEST_PX)
    return [source, generated]


def _lines(cell: Cell) -> list[str]:
    lines = [line for text in cell.caption for line in _wrapped(printable(text))]
    return lines[:_MAX_LINES]


def _wrapped(text: str) -> list[str]:
    lines: list[str] = []
    for word in text[:_MAX_CAPTION_CHARACTERS].split(" "):
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font(_TEXT_PX).getlength(longer) <= _CAPTION_WIDTH:
            lines[-1] = longer
        else:
            lines.append(word)
    return [shortened(line, _TEXT_PX, _CAPTION_WIDTH) for line in lines]


def _draw_images(
    sheet: PIL.Image.Image,
    corner: tuple[int, int],
    side: int,
    row: Sequence[PIL.Image.Image | None],
) -> None:
    draw = ImageDraw.Draw(sheet)
    for number, image in enumerate(row):
        x, y = corner[0] + number * (side + _GAP), corner[1]
        if image is None:
            draw.rectangle((x, y, x + side - 1, y + side - 1), outline=LINE)
            middle = (x + side // 2, y + side // 2)
            draw.text(middle, "source not found", FAINT, font(_TEXT_PX), anchor="mm")
        else:
            sheet.paste(image, (x, y))


def _draw_caption(draw: ImageDraw.ImageDraw, corner: tuple[int, int], lines: Sequence[str]) -> None:
    for number, line in enumerate(lines):
        colour = INK if number < 2 else FAINT
        draw.text((corner[0], corner[1] + number * _LINE_HEIGHT), line, colour, font(_TEXT_PX))
