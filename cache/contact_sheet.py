"""A sheet of generated images, each beside its source and the request in words.

Letters on pictures: Pillow's own face, so that a sheet is the same on every machine.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from io import BytesIO

import PIL.Image
from PIL import ImageDraw, ImageFont

from cache.codecs import Pixels
from cache.errors import CacheError
from cache.keys import Scalar

_SMALLEST_PX, _LARGEST_PX = 160, 256

_PAPER, _INK, _FAINT, _LINE = "#ffffff", "#1f2430", "#7a8190", "#e3e6ec"

_MARGIN, _GAP, _HEAD, _WORDS_WIDTH = 24, 16, 44, 300

_TITLE_PX, _TEXT_PX, _PITCH, _MOST_LINES = 20, 14, 19, 12

_FEW = 4

"""So many images stand in one column, more in two."""

_FIRST = ("strength", "prompt")

_UNSAID = frozenset(
    {
        *("method", "source_label", "target_label", "source_class", "target_class"),
        *("source_digest", "generator_fingerprint", "method_version", "image_digest"),
    }
)

"""Fields that are said otherwise or mean nothing to a reader."""


@dataclass(frozen=True, eq=False)
class Cell:
    """One generated image with what it came from."""

    generated: Pixels
    source: Pixels | None
    """None where it is not known."""
    words: Sequence[str]
    """Lines beside it."""


@dataclass(frozen=True)
class _Layout:
    side: int
    pictures: int
    cell_height: int
    columns: int

    @property
    def words_x(self) -> int:
        return self.pictures * (self.side + _GAP)

    @property
    def cell_width(self) -> int:
        return self.words_x + _WORDS_WIDTH

    def size(self, count: int) -> tuple[int, int]:
        rows = -(-count // self.columns)
        width = self.columns * (self.cell_width + _GAP) - _GAP + 2 * _MARGIN
        return width, _MARGIN + _HEAD + rows * self.cell_height + _MARGIN

    def corner(self, number: int) -> tuple[int, int]:
        row, column = divmod(number, self.columns)
        x = _MARGIN + column * (self.cell_width + _GAP)
        return x, _MARGIN + _HEAD + row * self.cell_height


def draw_sheet(cells: Sequence[Cell], title: str, *, has_sources: bool) -> bytes:
    """A PNG file with `cells`, of which there is at least one; with a column of sources or without.

    Small pictures are enlarged without smoothing, so that every pixel stays what it was.
    """
    pictures = [_pictures(cell, has_sources) for cell in cells]
    words = [_lines(cell) for cell in cells]
    side = max(max(picture.size) for row in pictures for picture in row if picture is not None)
    layout = _Layout(
        side=side,
        pictures=1 + has_sources,
        cell_height=max(side, _PITCH * max(map(len, words))) + _GAP,
        columns=1 if len(cells) <= _FEW else 2,
    )
    sheet = PIL.Image.new("RGB", layout.size(len(cells)), _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text(
        (_MARGIN, _MARGIN - 4),
        cut(title, _TITLE_PX, sheet.width - 2 * _MARGIN),
        _INK,
        font(_TITLE_PX),
    )
    for number, (row, lines) in enumerate(zip(pictures, words, strict=True)):
        x, y = layout.corner(number)
        _draw_pictures(sheet, (x, y), layout.side, row)
        _draw_words(draw, (x + layout.words_x, y), lines)
    return _as_png(sheet)


def words_of(request: Mapping[str, Scalar], class_name: Callable[[int], str]) -> list[str]:
    """A request in lines: its method, what became what, then all that was set."""
    sides = [request.get("source_label"), request.get("target_label")]
    names = [class_name(label) if isinstance(label, int) else "unknown" for label in sides]
    words = [str(request.get("method", "no method"))]
    if sides != [None, None]:
        words.append(names[0] if names[0] == names[1] else f"{names[0]} to {names[1]}")
    shown = {name: request[name] for name in (*_FIRST, *request) if name in request}
    return words + [
        f"{name.replace('_', ' ')}: {value}"
        for name, value in shown.items()
        if name not in _UNSAID and value is not None
    ]


def _pictures(cell: Cell, has_sources: bool) -> list[PIL.Image.Image | None]:
    source = None if cell.source is None else _shown(cell.source)
    return [source, _shown(cell.generated)] if has_sources else [_shown(cell.generated)]


def _shown(image: Pixels) -> PIL.Image.Image:
    picture = PIL.Image.fromarray(image)
    longest = max(picture.size)
    if longest > _LARGEST_PX:
        picture.thumbnail((_LARGEST_PX, _LARGEST_PX), PIL.Image.Resampling.LANCZOS)
        return picture
    factor = -(-_SMALLEST_PX // longest)
    size = (picture.width * factor, picture.height * factor)
    return picture.resize(size, PIL.Image.Resampling.NEAREST)


def _draw_pictures(
    sheet: PIL.Image.Image,
    corner: tuple[int, int],
    side: int,
    row: Sequence[PIL.Image.Image | None],
) -> None:
    draw = ImageDraw.Draw(sheet)
    for number, picture in enumerate(row):
        x, y = corner[0] + number * (side + _GAP), corner[1]
        if picture is None:
            draw.rectangle((x, y, x + side - 1, y + side - 1), outline=_LINE)
            middle = (x + side // 2, y + side // 2)
            draw.text(middle, "source not found", _FAINT, font(_TEXT_PX), anchor="mm")
        else:
            sheet.paste(picture, (x, y))


def _draw_words(draw: ImageDraw.ImageDraw, corner: tuple[int, int], lines: Sequence[str]) -> None:
    for number, line in enumerate(lines):
        colour = _INK if number < 2 else _FAINT
        draw.text((corner[0], corner[1] + number * _PITCH), line, colour, font(_TEXT_PX))


def _lines(cell: Cell) -> list[str]:
    lines = [line for words in cell.words for line in _wrapped(plain(words))]
    return lines[:_MOST_LINES]


def _wrapped(text: str) -> list[str]:
    lines: list[str] = []
    for word in text[:400].split(" "):
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font(_TEXT_PX).getlength(longer) <= _WORDS_WIDTH:
            lines[-1] = longer
        else:
            lines.append(word)
    return [cut(line, _TEXT_PX, _WORDS_WIDTH) for line in lines]


def _as_png(sheet: PIL.Image.Image) -> bytes:
    buffer = BytesIO()
    sheet.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


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


def plain(text: str) -> str:
    """`text` without what would steer a terminal: requests and file names come from elsewhere."""
    return "".join(
        letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text
    )
