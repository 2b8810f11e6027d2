"""The page and what it is put together from: sections, tables, tiles, bars, pictures.

A page is one file that loads nothing. It follows the reader's light or dark mode, and is as wide
as a phone where it must be.
"""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

_STYLE = Path(__file__).with_name("style.css")


def page(title: str, about: str, parts: Iterable[str]) -> str:
    """Return the whole file.

    Args:
        title: The heading.
        about: A line below it.
        parts: The sections; empty ones are left out.
    """
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE.read_text()}</style></head><body>"
        f'<header><h1>{escape(title)}</h1><p class="faint">{escape(about)}</p></header>'
        f"<main>{''.join(part for part in parts if part)}</main></body></html>\n"
    )


def section(title: str, *parts: str) -> str:
    """Return a section with a heading; nothing if all its parts are empty."""
    if not any(parts):
        return ""
    return f"<section><h2>{escape(title)}</h2>{''.join(parts)}</section>"


def charts(*drawn: str) -> str:
    """Put charts side by side, as many as fit."""
    return f'<div class="charts">{"".join(drawn)}</div>' if any(drawn) else ""


def side_by_side(*parts: str) -> str:
    """Put parts beside one another where there is room, else below."""
    shown = [f"<div>{part}</div>" for part in parts if part]
    return f'<div class="beside">{"".join(shown)}</div>' if shown else ""


def paragraph(text: str, kind: str = "") -> str:
    """Return a paragraph of plain text; nothing without text."""
    styled = f' class="{kind}"' if kind else ""
    return f"<p{styled}>{escape(text)}</p>" if text else ""


def folded(title: str, *parts: str) -> str:
    """Return parts that are shown when their title is clicked."""
    if not any(parts):
        return ""
    return f"<details><summary>{escape(title)}</summary>{''.join(parts)}</details>"


def preformatted(text: str) -> str:
    """Return text as it stands."""
    return f"<pre>{escape(text)}</pre>"


def table(
    heads: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: Iterable[int] = ()
) -> str:
    """Return a table that scrolls by itself if it is wider than the screen.

    Args:
        heads: Titles of the columns.
        rows: Cells in plain text, or ready as `Markup`; the first of each row names it.
        numbers: Columns that are set to the right.
    """
    right = set(numbers)
    body = "".join(_row(cells, right) for cells in rows)
    if not body:
        return ""
    titles = "".join(
        f'<th scope="col"{_kind(n, right)}>{escape(head)}</th>' for n, head in enumerate(heads)
    )
    return (
        f'<div class="scroll" tabindex="0"><table><thead><tr>{titles}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def named_values(values: Mapping[str, tuple[str, str]]) -> str:
    """Return a list of names, each with its value and a remark, in as many columns as fit."""
    drawn = "".join(
        f"<li><code>{escape(name)}</code> <b>{escape(value)}</b> "
        f"<small>{escape(remark)}</small></li>"
        for name, (value, remark) in values.items()
    )
    return f'<ul class="values">{drawn}</ul>' if drawn else ""


class Markup(str):
    """A cell that is HTML already."""

    __slots__ = ()


def _row(cells: Sequence[str], right: set[int]) -> str:
    first, *others = cells
    drawn = "".join(f"<td{_kind(n, right)}>{_cell(cell)}</td>" for n, cell in enumerate(others, 1))
    return f'<tr><th scope="row">{_cell(first)}</th>{drawn}</tr>'


def _kind(number: int, right: set[int]) -> str:
    return ' class="n"' if number in right else ""


def _cell(text: str) -> str:
    return text if isinstance(text, Markup) else escape(text)


def tiles(values: Mapping[str, str]) -> str:
    """Return the figures that matter most, large."""
    drawn = "".join(
        f'<div class="tile"><b>{escape(value)}</b><span>{escape(name)}</span></div>'
        for name, value in values.items()
    )
    return f'<div class="tiles">{drawn}</div>'


def bar(share: float, colour: str = "c0") -> Markup:
    """Draw a share in [0, 1]; the number stands beside it, so that readers aloud skip it."""
    return Markup(
        f'<span class="bar" aria-hidden="true"><i class="{colour}" '
        f'style="width:{100 * share:.1f}%"></i></span>'
    )


def change_bar(change: float, largest: float) -> Markup:
    """Draw a change to the right of the middle if it is above zero, else to the left of it."""
    width = 50 * abs(change) / (largest or 1.0)
    start = 50.0 if change >= 0 else 50 - width
    kind = "up" if change >= 0 else "down"
    return Markup(
        f'<span class="bar" aria-hidden="true"><i style="width:{start:.1f}%"></i>'
        f'<i class="{kind}" style="width:{width:.1f}%"></i></span>'
    )


def parts_bar(parts: Mapping[str, tuple[float, str]]) -> str:
    """Draw parts of a whole in one bar, each given by its amount and its colour."""
    whole = sum(amount for amount, _ in parts.values()) or 1.0
    drawn = "".join(
        f'<i class="{colour}" style="width:{100 * amount / whole:.2f}%" title="{escape(name)}"></i>'
        for name, (amount, colour) in parts.items()
    )
    keys = "".join(
        f'<span class="key"><i class="{colour}"></i>{escape(name)}</span>'
        for name, (_, colour) in parts.items()
    )
    return f'<div class="keys">{keys}</div><div class="bar wide" aria-hidden="true">{drawn}</div>'


def picture(data: str, text: str, *, is_tiny: bool) -> str:
    """Return an image that is part of the page.

    Args:
        data: The WebP file in base64.
        text: What it shows, for who cannot see it.
        is_tiny: Whether its pixels are to be seen.
    """
    kind = ' class="tiny"' if is_tiny else ""
    return f'<img{kind} src="data:image/webp;base64,{escape(data)}" alt="{escape(text)}">'
