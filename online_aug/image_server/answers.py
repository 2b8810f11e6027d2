"""The answers of an image server: an image, a reason to ask again, or an error in one line."""

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import numpy as np
from jaxtyping import UInt8

from online_aug.data.images import BadImageError, decode_image
from online_aug.documents import DocumentError, parse_json
from online_aug.errors import UserError, escaped

MAX_ANSWER_BYTES = 128 * 2**20
"""Longest answer that is read."""
_REFUSED = frozenset({"moderation_blocked", "content_policy_violation"})
"""Codes by which a server says that it makes no image of just this request."""
_BUSY = frozenset({408, 409, 425, 429})
_MESSAGE_LETTERS = 200


@dataclass(frozen=True, kw_only=True)
class Answer:
    """An answer as it came."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class AskAgainError(Exception):
    """The server may have an image at the next try."""

    def __init__(self, reason: str, wait_s: float = 0.0, *, is_busy: bool = True) -> None:
        """Take the reason, how long the server wants to be left alone, and whether it is busy.

        One that is not busy, but answers nothing of use, will hardly be better after a restart.
        """
        super().__init__(reason)
        self.wait_s, self.is_busy = wait_s, is_busy


class RefusedError(Exception):
    """The server makes no image of a request: its rules on content forbid it."""


def check_status(answer: Answer, url: str) -> None:
    """Raise unless an answer is good.

    Raises:
        AskAgainError: If the server is busy or has failed.
        RefusedError: If its rules on content forbid this request.
        UserError: If it will never answer otherwise.
    """
    if answer.status == 200:
        return
    said = f"HTTP {answer.status}{_message(answer)}"
    if answer.status in _BUSY or answer.status >= 500:
        raise AskAgainError(said, retry_after_s(answer.headers, datetime.now(UTC)))
    if _code(answer) in _REFUSED:
        raise RefusedError(said)
    if answer.status in (401, 403):
        raise UserError(
            f"image_server.key_variable must name a variable with a key that {url} takes: {said}"
        )
    if 300 <= answer.status < 400 or answer.status in (404, 405):
        raise UserError(
            "image_server.url must be the address of an images API, mostly one that ends in /v1: "
            f"{url} answers {said}"
        )
    raise UserError(
        f"image_server.url must be a server that takes our requests, {url} answers {said}; see "
        "generation.resolution and image_server.extra_fields"
    )


def read_object(answer: Answer) -> Mapping[str, Any]:
    """Return the JSON object of a good answer.

    Raises:
        AskAgainError: If it holds none.
    """
    try:
        values = parse_json(answer.body.decode())
    except (UnicodeDecodeError, DocumentError):
        values = None
    if not isinstance(values, dict):
        begin = _shortened(answer.body.decode(errors="replace"))
        raise AskAgainError(f"an answer that is no JSON object: {begin!r}", is_busy=False)
    return values


def read_image(answer: Answer, side: int) -> UInt8[np.ndarray, "r r 3"]:
    """Return the image of a good answer.

    Args:
        answer: Its JSON object holds one image in base64.
        side: Side of the square that was asked for, px.

    Raises:
        AskAgainError: If it holds no image.
        UserError: If the image has another size, or is somewhere else.
    """
    data = read_object(answer).get("data")
    one = data[0] if isinstance(data, list) and len(data) == 1 else None
    if not isinstance(one, dict):
        raise AskAgainError("an answer without one image", is_busy=False)
    if one.get("b64_json") is None and one.get("url"):
        raise UserError(
            "image_server.extra_fields must hold response_format, without which the server "
            "answers with the address of an image"
        )
    try:
        content = base64.b64decode(one.get("b64_json") or "", validate=True)
        image = decode_image(content, "of the answer")
    except (TypeError, ValueError, binascii.Error, BadImageError) as error:
        raise AskAgainError(f"an answer without an image ({error})", is_busy=False) from None
    height, width = image.shape[:2]
    if (height, width) != (side, side):
        raise UserError(
            "generation.resolution must be a side of squares that the image server makes, asked "
            f"for {side}x{side}, got {width}x{height}"
        )
    return image


def retry_after_s(headers: Mapping[str, str], now: datetime) -> float:
    """Return how long a server wants to be left alone, 0 if it does not say.

    Example:
        >>> retry_after_s({"retry-after": "Mon, 01 Jan 2024 00:00:09 GMT"},
        ...     datetime(2024, 1, 1, tzinfo=UTC))
        9.0
    """
    text = headers.get("retry-after", "").strip()
    if text.isascii() and text.isdecimal():
        return float(text)
    try:
        return max(0.0, (parsedate_to_datetime(text) - now).total_seconds())
    except (TypeError, ValueError):
        return 0.0


def _error_of(answer: Answer) -> Any:
    try:
        values = json.loads(answer.body)
    except ValueError:
        return answer.body.decode(errors="replace")
    found = values.get("error", values.get("detail")) if isinstance(values, dict) else None
    return found if found is not None else answer.body.decode(errors="replace")


def _message(answer: Answer) -> str:
    error = _error_of(answer)
    said = error.get("message", "") if isinstance(error, dict) else error
    text = _shortened(said if isinstance(said, str) else json.dumps(said))
    return f" ({text})" if text else ""


def _code(answer: Answer) -> object:
    error = _error_of(answer)
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, str) else None


def _shortened(text: str) -> str:
    return escaped(" ".join(text.split())[:_MESSAGE_LETTERS])
