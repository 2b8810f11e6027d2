"""The note that a request must not be made again: its reason, and for some a picture to look at."""

import base64
import binascii
from dataclasses import dataclass
from typing import Self

from cache.errors import CorruptRecordError
from cache.keys import Scalar, canonical_bytes, decode_fields

_LENGTH_BYTES = 4


@dataclass(frozen=True)
class Rejection:
    """The reason why a request was rejected, with a picture of its image if one was kept."""

    reason: str
    picture: bytes | None = None
    """A small image file."""

    def to_bytes(self, request: bytes) -> bytes:
        """Encode the rejection of an encoded request; see `docs/CACHE_FORMAT.md`."""
        fields: dict[str, Scalar] = {"reason": self.reason}
        if self.picture is not None:
            fields["picture"] = base64.b64encode(self.picture).decode()
        encoded = canonical_bytes(fields)
        return len(encoded).to_bytes(_LENGTH_BYTES, "big") + encoded + request

    @classmethod
    def from_bytes(cls, raw: bytes) -> Self:
        """Decode a rejection.

        Raises:
            CorruptRecordError: If it gives no reason, or its picture is not encoded as one.
        """
        length = int.from_bytes(raw[:_LENGTH_BYTES], "big")
        match decode_fields(raw[_LENGTH_BYTES : _LENGTH_BYTES + length]):
            case {"reason": str(reason), "picture": str(picture)}:
                return cls(reason, _decoded(picture))
            case {"reason": str(reason)}:
                return cls(reason)
        raise CorruptRecordError("rejection must give a reason")


def _decoded(picture: str) -> bytes:
    try:
        return base64.b64decode(picture, validate=True)
    except (binascii.Error, ValueError) as error:
        raise CorruptRecordError(f"picture of a rejection must be base64: {error}") from None
