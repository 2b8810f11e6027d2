"""One entry of the cache and its bytes: header, request, scores, image, under one checksum."""

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field

from cache.codec import (
    MAX_IMAGE_BYTES,
    Codec,
    Pixels,
    checked_image,
    codec_numbered,
)
from cache.errors import CacheError, CorruptRecordError
from cache.key import Scalar, canonical_bytes, decode_fields, digest_of

MAGIC = b"OARC"
SCHEMA_VERSION = 1
"""Of the records and of the tables they are kept in; a newer one is refused."""

# magic, schema, codec, zero, height, width, created, position, lengths of request/scores/image
_HEADER = struct.Struct(">4sHBBIIdQIII")
_CHECKSUM_BYTES = 16
_METHOD_CHARACTERS = 64
_PERSON = b"online-aug rec 1"


@dataclass(frozen=True, eq=False)
class Entry:
    """What is offered to the cache: a generated image with the request that decided its pixels."""

    request: Mapping[str, Scalar]
    image: Pixels
    """uint8, `h w 3`."""
    scores: Mapping[str, float] = field(default_factory=dict)
    """What the gate measured, by name."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Record:
    """What the cache returns."""

    key: bytes
    image: Pixels
    """uint8, `h w 3`, read-only."""
    request: dict[str, Scalar]
    scores: dict[str, float]
    created: float
    """Unix time, s."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Stored:
    """A record whose checksum was right and whose image is still encoded."""

    key: bytes
    codec: Codec
    height: int
    width: int
    created: float
    position: int
    """Its place in the log, from 1."""
    request: dict[str, Scalar]
    scores: dict[str, float]
    image_bytes: bytes

    def decode(self) -> Record:
        """The record with its pixels.

        Raises:
            CorruptRecordError: If the image does not decode to the size the header gives.
        """
        try:
            image = self.codec.decode(self.image_bytes, self.height, self.width)
        except CorruptRecordError as error:
            raise _corrupt(self.key, str(error)) from error
        return Record(
            key=self.key,
            image=image,
            request=self.request,
            scores=self.scores,
            created=self.created,
        )


class Draft:
    """An entry, encoded and nearly digested before any lock is taken; only its position is open."""

    def __init__(self, entry: Entry, codec: Codec, created: float) -> None:
        """Encode `entry`.

        Raises:
            CacheError: If its image, request or scores cannot be stored.
        """
        image = checked_image(entry.image)
        request = canonical_bytes(entry.request)
        scores = canonical_bytes({name: float(score) for name, score in entry.scores.items()})
        data = codec.encode(image)
        if len(data) > MAX_IMAGE_BYTES:
            raise CacheError(f"image must encode to at most {MAX_IMAGE_BYTES} bytes")
        self.key = digest_of(request)
        self.method = method_of(entry.request)
        self._fixed = (MAGIC, SCHEMA_VERSION, codec.number, 0, *image.shape[:2], created)
        self._lengths = (len(request), len(scores), len(data))
        self._body = request + scores + data
        self._hasher = _hasher(self._body)

    def __len__(self) -> int:
        """Bytes of the sealed record."""
        return _HEADER.size + _CHECKSUM_BYTES + len(self._body)

    def seal(self, position: int) -> bytes:
        """The bytes to store for an entry at that place of the log."""
        header = _HEADER.pack(*self._fixed, position, *self._lengths)
        hasher = self._hasher.copy()
        hasher.update(header)
        return header + hasher.digest() + self._body


def parse(key: bytes, value: bytes) -> Stored:
    """The record in `value`, checked against its checksum and its key.

    Raises:
        CorruptRecordError: If a byte of it is not what was written.
    """
    start = _HEADER.size + _CHECKSUM_BYTES
    if len(value) < start:
        raise _corrupt(key, f"it has {len(value)} bytes, a header has {start}")
    header, body = value[: _HEADER.size], value[start:]
    magic, schema, codec, zero, height, width, created, position, *lengths = _HEADER.unpack(header)
    if magic != MAGIC or schema != SCHEMA_VERSION or zero or sum(lengths) != len(body):
        raise _corrupt(key, "its header is not one of this version's")
    hasher = _hasher(body)
    hasher.update(header)
    if hasher.digest() != value[_HEADER.size : start]:
        raise _corrupt(key, "its checksum does not match")
    request, scores, image = _split(body, lengths)
    if digest_of(request) != key:
        raise _corrupt(key, "its request belongs to another key")
    return Stored(
        key=key,
        codec=codec_numbered(codec),
        height=height,
        width=width,
        created=created,
        position=position,
        request=decode_fields(request),
        scores=_decode_scores(scores),
        image_bytes=image,
    )


def position_of(value: bytes) -> int | None:
    """The log position a record names, unchecked; None where there is no whole header."""
    return None if len(value) < _HEADER.size else int(_HEADER.unpack_from(value)[7])


def method_of(request: Mapping[str, Scalar]) -> str:
    """The method a request names, "" where it names none: what entries are counted by."""
    method = request.get("method")
    return method[:_METHOD_CHARACTERS] if isinstance(method, str) else ""


def _hasher(body: bytes) -> "hashlib.blake2b":
    return hashlib.blake2b(body, digest_size=_CHECKSUM_BYTES, person=_PERSON)


def _split(body: bytes, lengths: list[int]) -> tuple[bytes, bytes, bytes]:
    first, second = lengths[0], lengths[0] + lengths[1]
    return body[:first], body[first:second], body[second:]


def _decode_scores(data: bytes) -> dict[str, float]:
    scores = decode_fields(data)
    if not all(isinstance(score, float) for score in scores.values()):
        raise CorruptRecordError("scores must be floats")
    return {name: score for name, score in scores.items() if isinstance(score, float)}


def _corrupt(key: bytes, reason: str) -> CorruptRecordError:
    return CorruptRecordError(f"record {key.hex()} is corrupt: {reason}")
