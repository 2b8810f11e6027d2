"""A record without its image as a row of text, and back."""

import json
import math
from collections.abc import Mapping
from typing import Any

from cache.errors import CacheError
from cache.exchange.images import Description
from cache.key import Scalar, request_key
from cache.record import Record

FIELDS = ("method", "source_label", "target_label", "strength", "prompt")
"""Of the request, given a column each for those who filter; `request` holds all."""
COLUMNS = ("key", "created", *FIELDS, "request", "scores")

_MAX_TEXT = 2**21


def to_row(stored: Record) -> dict[str, str]:
    """The columns of a record; request and scores as JSON, numbers exact."""
    fields = {name: _text(stored.request.get(name)) for name in FIELDS}
    return {
        "key": stored.key.hex(),
        "created": repr(stored.created),
        **fields,
        "request": json.dumps(stored.request, ensure_ascii=False),
        "scores": json.dumps(stored.scores),
    }


def from_row(row: Mapping[str, Any]) -> Description:
    """What a row describes; only `key`, `created`, `request` and `scores` are read.

    Raises:
        CacheError: If they are missing, malformed, or the key is not that of the request.
    """
    request = _scalars("request", row.get("request"))
    scores = _scalars("scores", row.get("scores") or "{}")
    if not all(isinstance(score, int | float) for score in scores.values()):
        raise CacheError("scores must be numbers")
    if request_key(request).hex() != row.get("key"):
        raise CacheError("key must be the request's own")
    return Description(
        request=request,
        scores={name: _number(score) for name, score in scores.items()},
        created=_number(row.get("created")),
    )


def label_of(request: Mapping[str, Scalar], side: str) -> int | None:
    """The label of the `source` or `target` class where the request names one."""
    label = request.get(f"{side}_label")
    is_label = isinstance(label, int) and not isinstance(label, bool) and label >= 0
    return int(label) if is_label and label is not None else None


def _scalars(name: str, text: object) -> dict[str, Scalar]:
    if not isinstance(text, str) or len(text) > _MAX_TEXT:
        raise CacheError(f"{name} must be JSON of at most {_MAX_TEXT} characters")
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CacheError(f"{name} must be JSON") from error
    if not isinstance(fields, dict) or any(isinstance(v, dict | list) for v in fields.values()):
        raise CacheError(f"{name} must be a flat JSON object")
    return fields


def _number(value: object) -> float:
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError) as error:
        raise CacheError("created and scores must be numbers") from error
    if math.isnan(number):
        raise CacheError("created and scores must be numbers, got nan")
    return number


def _text(value: Scalar) -> str:
    return "" if value is None else str(value)
