"""The note that a request must not be made again: its reason, and for some a picture to look at."""

import base64
import binascii
from dataclasses import dataclass, field
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
        end = _LENGTH_BYTES + int.from_bytes(raw[:_LENGTH_BYTES], "big")
        match decode_fields(raw[_LENGTH_BYTES:end]):
            case {"reason": str(reason), "picture": str(picture)}:
                return cls(reason, _decoded(picture), raw[end:])
            case {"reason": str(reason)}:
                return cls(reason, None, raw[end:])
        raise CorruptRecordError("rejection must give a reason")


def _decoded(picture: str) -> bytes:
    try:
        return base64.b64decode(picture, validate=True)
    except (binascii.Error, ValueError) as error:
        raise CorruptRecordError(f"picture of a rejection must be base64: {error}") from None
