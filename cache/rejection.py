"""The note that a request must not be made again: reason, scores, for some a picture to look at."""

import base64
import binascii
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

from cache.errors import CorruptRecordError
from cache.keys import Scalar, canonical_bytes, decode_fields

_LENGTH_BYTES = 4
_SCORE = "score/"


@dataclass(frozen=True)
class Rejection:
    """The reason why a request was rejected, what was measured, and a picture if one is kept."""

    reason: str
    picture: bytes | None = None
    """A small image file."""
    scores: Mapping[str, float] = field(default_factory=dict)
    """What was measured on its image, by name; NaN is not stored."""
    request_bytes: bytes = field(default=b"", compare=False, repr=False)
    """The encoded request, if the rejection was read from a cache."""

    @property
    def request(self) -> dict[str, Scalar]:
        """The fields that would have decided the pixels.

        Raises:
            CorruptRecordError: If another program did not encode them canonically.
        """
        return decode_fields(self.request_bytes)

    def to_bytes(self, request: bytes) -> bytes:
        """Encode the rejection of an encoded request; see `docs/CACHE_FORMAT.md`."""
        fields: dict[str, Scalar] = {"reason": self.reason}
        fields |= {_SCORE + name: float(v) for name, v in self.scores.items() if not math.isnan(v)}
        if self.picture is not None:
            fields["picture"] = base64.b64encode(self.picture).decode()
        encoded = canonical_bytes(fields)
        return len(encoded).to_bytes(_LENGTH_BYTES, "big") + encoded + request

    @classmethod
    def from_bytes(cls, raw: bytes) -> Self:
        """Decode a rejection.

        Raises:
            CorruptRecordError: If it gives no reason, or picture or scores are not encoded as such.
        """
        end = _LENGTH_BYTES + int.from_bytes(raw[:_LENGTH_BYTES], "big")
        match fields := decode_fields(raw[_LENGTH_BYTES:end]):
            case {"reason": str(reason), "picture": str(picture)}:
                return cls(reason, _decoded(picture), _scores(fields), raw[end:])
            case {"reason": str(reason)}:
                return cls(reason, None, _scores(fields), raw[end:])
        raise CorruptRecordError("rejection must give a reason")


def _scores(fields: Mapping[str, Scalar]) -> dict[str, float]:
    found = {}
    for name, score in fields.items():
        if name.startswith(_SCORE):
            if not isinstance(score, float):
                raise CorruptRecordError("scores of a rejection must be floats")
            found[name.removeprefix(_SCORE)] = score
    return found


def _decoded(picture: str) -> bytes:
    try:
        return base64.b64decode(picture, validate=True)
    except (binascii.Error, ValueError) as error:
        raise CorruptRecordError(f"picture of a rejection must be base64: {error}") from None
