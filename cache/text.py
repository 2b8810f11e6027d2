"""Text for people: names that are safe to print, byte sizes, the nearest known name."""

import difflib
from collections.abc import Iterable

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_SIMILARITY = 0.6


def printable(text: str) -> str:
    """Replace every character that would steer a terminal.

    Requests and file names come from elsewhere and can hold escape sequences.

    Example:
        >>> printable("bird\\x1b[2J")
        'bird\ufffd[2J'
    """
    return "".join(
        letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text
    )


def byte_size(size_bytes: int) -> str:
    """Return a size in the largest binary unit in which it is at least 1.

    Example:
        >>> byte_size(0), byte_size(1536), byte_size(500 * 2**20)
        ('0 B', '1.5 KiB', '500 MiB')
    """
    size, unit = float(size_bytes), 0
    while size >= 1024 and unit < len(_UNITS) - 1:
        size, unit = size / 1024, unit + 1
    digits = 0 if unit == 0 or size >= 100 else 1
    return f"{size:.{digits}f} {_UNITS[unit]}"


def nearest_names(
    name: str, known: Iterable[str], *, limit: int = 3, similarity: float = _SIMILARITY
) -> list[str]:
    """Return the known names most like `name`, the nearest first.

    Args:
        name: An unknown name, mistyped perhaps.
        known: Names to choose from.
        limit: At most so many are returned.
        similarity: How alike a name must be, from 0 (not at all) to 1 (equal).

    Example:
        >>> nearest_names("wrne", ["wren", "robin"])
        ['wren']
    """
    return difflib.get_close_matches(name, list(known), n=limit, cutoff=similarity)


def nearest_hint(name: str, known: Iterable[str]) -> str:
    """Return the end of an error line that names the nearest known names, or an empty string.

    Example:
        >>> nearest_hint("wrne", ["wren", "robin"])
        '; nearest: wren'
    """
    nearest = nearest_names(name, known)
    return f"; nearest: {', '.join(nearest)}" if nearest else ""
