"""Rows of the page: what is known of each image, with a small picture of it and of its source."""

import math
import os
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

from cache.contact_sheet import small_picture
from cache.errors import CacheError
from cache.exchange.image_files import find_sources, pixels_of
from cache.exchange.metadata import ClassNames
from cache.exchange.records import Unreadable
from cache.keys import Scalar, label_of
from cache.record import Record
from cache.rejection import Rejection

PICTURE_PX = 160
"""Longest side of a picture; smaller images keep their pixels."""
MAX_PICTURES_MIB = 100
"""What all pictures of a page may take."""

Row: TypeAlias = dict[str, Any]
OnProgress: TypeAlias = Callable[[int, int | None], None]

_SIDES = ("source", "target")
_AT_ONCE = 64
_MAX_THREADS = 8
_SHOWN_ELSEWHERE = frozenset({"method", "strength", "prompt"})
"""Fields of a request that have a name of their own in a row."""


@dataclass
class Entries:
    """The content of a page."""

    rows: list[Row] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    """Pictures of source images in base64; `source_picture` of a row is a place in this list."""
    is_cut: bool = False
    """Whether images were left out because the page would have grown too large."""
    size: int = 0
    """Characters of all pictures."""

    def add(self, rows: Iterable[Row], *, share: float) -> None:
        """Add rows until the pictures take this share of what they may."""
        for row in rows:
            if self.size > share * MAX_PICTURES_MIB * 2**20:
                self.is_cut = True
                return
            self.size += len(row["picture"] or "")
            self.rows.append(row)

    def add_sources(self, folder: Path, on_progress: OnProgress) -> None:
        """Find the source images in a folder, by the digests of their files, and add pictures.

        Raises:
            CacheError: If it is not a folder.
        """
        by_digest: dict[str, list[Row]] = {}
        for row in self.rows:
            if (digest := row["fields"].get("source_digest")) is not None:
                by_digest.setdefault(digest, []).append(row)
        found = find_sources(folder, by_digest)
        pictures = _in_threads(_source_picture, found.values())
        for done, (digest, picture) in enumerate(zip(found, pictures, strict=True)):
            on_progress(done, len(found))
            if picture is None or self.size > MAX_PICTURES_MIB * 2**20:
                self.is_cut |= picture is not None
                continue
            self.size += len(picture)
            for row in by_digest[digest]:
                row["source_picture"] = len(self.sources)
            self.sources.append(picture)


def accepted_rows(records: Iterable[Record | Unreadable], names: ClassNames) -> Iterator[Row]:
    """Yield a row for each record, also for one that cannot be read."""
    return _in_threads(partial(_accepted, names), records)


def rejected_rows(
    rejections: Mapping[bytes, Rejection], names: ClassNames, rows: Iterable[Row]
) -> Iterator[Row]:
    """Yield a row for each rejection; those come first whose picture was kept.

    Rejections name no classes. So a label is called as in `names`, else as in the other `rows`.
    """
    known = _known_classes(rows) | dict(enumerate(names.names))
    for key, rejection in sorted(rejections.items(), key=lambda item: item[1].picture is None):
        row = _row(key, rejection.request, rejection.picture)
        labels = (label_of(rejection.request, side) for side in _SIDES)
        source, target = (None if n is None else known.get(n, f"class {n}") for n in labels)
        yield row | {
            "status": "rejected",
            "reason": rejection.reason,
            "scores": {name: _number(score) for name, score in rejection.scores.items()},
            "source": source,
            "target": target,
        }


def _in_threads(make: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    left = iter(items)
    with ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1)) as pool:
        while part := list(islice(left, _AT_ONCE)):
            yield from pool.map(make, part)


def _accepted(names: ClassNames, record: Record | Unreadable) -> Row:
    if isinstance(record, Unreadable):
        return _unreadable(record.key, record.problem)
    try:
        picture = small_picture(record.image, PICTURE_PX)
    except CacheError as error:
        return _unreadable(record.key, str(error))
    source, target = (names.caption_in(record, side) for side in _SIDES)
    return _row(record.key, record.request, picture) | {
        "created": record.created,
        "data_set": record.classes.get("data_set"),
        "source": source,
        "target": target,
        "size": f"{record.width} x {record.height} px, {record.codec.name}",
        "scores": {name: _number(score) for name, score in record.scores.items()},
    }


def _unreadable(key: bytes, problem: str) -> Row:
    return _row(key, {}, None) | {"status": "unreadable", "reason": problem}


def _row(key: bytes, request: Mapping[str, Scalar], picture: bytes | None) -> Row:
    method, prompt = (request.get(name) for name in ("method", "prompt"))
    others = {name: value for name, value in request.items() if name not in _SHOWN_ELSEWHERE}
    return {
        "key": key.hex(),
        "status": "accepted",
        "method": None if method is None else str(method),
        "prompt": None if prompt is None else str(prompt),
        "strength": _number(request.get("strength")),
        "fields": {name: str(value) for name, value in others.items() if value is not None},
        "scores": {},
        "picture": None if picture is None else b64encode(picture).decode(),
    }


def _number(value: Scalar) -> float | None:
    # JSON has no infinity, and a browser's numbers are floats.
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def _known_classes(rows: Iterable[Row]) -> dict[int, str]:
    found: dict[int, set[str]] = {}
    for row in rows:
        for side in _SIDES:
            label, name = row["fields"].get(f"{side}_label", ""), row.get(side)
            if label.isdigit() and name is not None:
                found.setdefault(int(label), set()).add(name)
    return {label: names.pop() for label, names in found.items() if len(names) == 1}


def _source_picture(path: Path) -> str | None:
    try:
        return b64encode(small_picture(pixels_of(path.read_bytes()), PICTURE_PX)).decode()
    except (CacheError, OSError):
        return None
