"""The file: markup, style, script and data in one, which loads nothing else."""

import json
from base64 import b64encode
from collections.abc import Iterator
from hashlib import sha256
from html import escape
from pathlib import Path

from cache.html_page.entries import Entries

_HERE = Path(__file__).parent


def write_page(path: Path, title: str, about: str, entries: Entries) -> None:
    """Write a page; names, prompts and pictures of whatever origin cannot act in it.

    Args:
        path: The file.
        title: The heading.
        about: A line below it.
        entries: The images.
    """
    with path.open("w", encoding="utf-8") as file:
        file.writelines(_parts(title, about, entries))


def _parts(title: str, about: str, entries: Entries) -> Iterator[str]:
    style, script, body = (
        (_HERE / name).read_text(encoding="utf-8") for name in ("page.css", "page.js", "page.html")
    )
    yield '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
    # Nothing is loaded, and no script runs but ours, even if a text were to slip through.
    yield (
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        f'style-src {_hash(style)}; script-src {_hash(script)}">\n'
    )
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    yield f"<title>{escape(title)}</title><style>{style}</style></head><body>\n"
    yield body.format(title=escape(title), about=escape(about))
    yield '<script type="application/json" id="sources">'
    yield from _json_list(entries.sources)
    yield '</script>\n<script type="application/json" id="rows">'
    yield from _json_list(entries.rows)
    yield f"</script>\n<script>{script}</script></body></html>\n"


def _hash(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"


def _json_list(items: list[object] | list[str] | list[dict[str, object]]) -> Iterator[str]:
    separator = "["
    for item in items:
        yield separator + _json(item)
        separator = ",\n"
    yield "[]" if separator == "[" else "]"


def _json(item: object) -> str:
    # A script element ends at the first "</script", whatever the JSON around it.
    return json.dumps(item).replace("<", "\\u003c")
