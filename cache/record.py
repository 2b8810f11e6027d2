"""One entry of the cache and its bytes: header, request, scores, image, under one checksum."""

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Self

from cache.codec import (
    MAX_IMAGE_BYTES,
    Codec,
    Pixels,
    checked_image,
    codec_numbered,
)
from cache.errors import CacheError, CorruptRecordError
from cache.facts import Facts, facts_of
from cache.key import Scalar, canonical_bytes, decode_fields, digest_of

MAGIC = b"OARC"
RECORD_VERSION = 1
"""Of the bytes of a record, apart from the schema of the tables it is kept in."""

# magic, version, codec, zero, height, width, created, position, lengths of request/scores/image
_HEADER = struct.Struct(">4sHBBIIdQIII")
_CHECKSUM_BYTES = 16
_BODY = _HEADER.size + _CHECKSUM_BYTES
_PERSON = b"online-aug rec 1"


@dataclass(frozen=True, eq=False)
class Entry:
    """What is offered to the cache: a generated image with the request that decided its pixels."""

    request: Mapping[str, Scalar]
    image: Pixels
    """uint8, `h w 3`."""
    scores: Mapping[str, float] = field(default_factory=dict)
    """What the gate measured, by name."""

    @cached_property
    def encoded_request(self) -> bytes:
        """Canonical encoding of the request as it was when this was first asked for."""
        return canonical_bytes(self.request)


@dataclass(frozen=True, kw_only=True, eq=False)
class Described:
    """What a record says about its image, checked; decoded when it is first asked for.

    A reader of many images asks for no request, and decoding one takes longer than finding it.
    """

    key: bytes
    created: float
    """Unix time, s."""
    request_bytes: bytes
    """The encoded request, of which `key` is the digest."""
    scores_bytes: bytes

    @cached_property
    def request(self) -> dict[str, Scalar]:
        """What decided the pixels.

        Raises:
            CorruptRecordError: If another program encoded it otherwise than it has to.
        """
        return decode_fields(self.request_bytes)

    @cached_property
    def scores(self) -> dict[str, float]:
        """What the gate measured, by name; raises as `request` does."""
        scores = decode_fields(self.scores_bytes)
        if not all(isinstance(score, float) for score in scores.values()):
            raise CorruptRecordError("scores must be floats")
        return {name: score for name, score in scores.items() if isinstance(score, float)}


@dataclass(frozen=True, kw_only=True, eq=False)
class Record(Described):
    """What the cache returns."""

    image: Pixels
    """uint8, `h w 3`, read-only."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Stored(Described):
    """A record whose checksum was right and whose image is still encoded."""

    codec: Codec
    height: int
    width: int
    position: int
    """Its place in the log, from 1."""
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
            request_bytes=self.request_bytes,
            scores_bytes=self.scores_bytes,
            created=self.created,
        )

    def check(self) -> None:
        """Decode all of it: image, request and scores.

        Raises:
            CorruptRecordError: If one of them cannot be decoded.
        """
        self.decode()
        _ = self.request, self.scores


class Draft:
    """A record, encoded and nearly digested before any lock is taken; only its position is open."""

    def __init__(self, entry: Entry, codec: Codec, created: float) -> None:
        """Encode `entry`.

        Raises:
            CacheError: If its image, request or scores cannot be stored.
        """
        image = checked_image(entry.image)
        data = codec.encode(image)
        if len(data) > MAX_IMAGE_BYTES:
            raise CacheError(f"image must encode to at most {MAX_IMAGE_BYTES} bytes")
        height, width, _ = image.shape
        fixed = (codec.number, 0, height, width, created)
        self._prepare(entry.encoded_request, facts_of(entry.request), entry.scores, data, fixed)

    @classmethod
    def copy(cls, stored: Stored) -> Self:
        """The same record for another place or cache, its image not encoded again."""
        draft = cls.__new__(cls)
        fixed = (stored.codec.number, 0, stored.height, stored.width, stored.created)
        encoded, facts = canonical_bytes(stored.request), facts_of(stored.request)
        draft._prepare(encoded, facts, stored.scores, stored.image_bytes, fixed)
        return draft

    def _prepare(
        self,
        encoded: bytes,
        facts: Facts,
        scores: Mapping[str, float],
        data: bytes,
        fixed: tuple[float, ...],
    ) -> None:
        measured = canonical_bytes({name: float(score) for name, score in scores.items()})
        self.key = digest_of(encoded)
        self.facts = facts
        self._fixed = (MAGIC, RECORD_VERSION, *fixed)
        self._lengths = (len(encoded), len(measured), len(data))
        self._body = encoded + measured + data
        self._hasher = _hasher(self._body)

    @property
    def size(self) -> int:
        """Bytes of the sealed record."""
        return _BODY + len(self._body)

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
    codec, height, width, created, position, lengths = _unpack(key, value)
    hasher = _hasher(memoryview(value)[_BODY:])
    hasher.update(value[: _HEADER.size])
    if hasher.digest() != value[_HEADER.size : _BODY]:
        raise _corrupt(key, "its checksum does not match")
    request, scores, image = _split(value, lengths)
    if digest_of(request) != key:
        raise _corrupt(key, "its request belongs to another key")
    return Stored(
        key=key,
        codec=codec_numbered(codec),
        height=height,
        width=width,
        created=created,
        position=position,
        request_bytes=request,
        scores_bytes=scores,
        image_bytes=image,
    )


@dataclass(frozen=True, slots=True)
class Glimpse:
    """What the indexes need of a record; its image was not looked at."""

    request: dict[str, Scalar]
    created: float
    position: int


def glimpse(key: bytes, value: bytes) -> Glimpse:
    """The part of a record that its own key vouches for: the request; and its header, unchecked.

    Raises:
        CorruptRecordError: If the request is not what was written.
    """
    _, _, _, created, position, lengths = _unpack(key, value)
    request = value[_BODY : _BODY + lengths[0]]
    if digest_of(request) != key:
        raise _corrupt(key, "its request belongs to another key")
    return Glimpse(decode_fields(request), created, position)


def position_of(value: bytes) -> int | None:
    """The log position a record names, unchecked; None where there is no whole header."""
    return None if len(value) < _HEADER.size else int(_HEADER.unpack_from(value)[7])


def _unpack(key: bytes, value: bytes) -> tuple[int, int, int, float, int, list[int]]:
    if len(value) < _BODY:
        raise _corrupt(key, f"it has {len(value)} bytes, a header has {_BODY}")
    magic, version, codec, zero, height, width, created, position, *lengths = _HEADER.unpack_from(
        value
    )
    if magic != MAGIC or version != RECORD_VERSION or zero or sum(lengths) != len(value) - _BODY:
        raise _corrupt(key, "its header is not one of this version's")
    return codec, height, width, created, position, lengths


def _hasher(body: bytes | memoryview) -> "hashlib.blake2b":
    return hashlib.blake2b(body, digest_size=_CHECKSUM_BYTES, person=_PERSON)


def _split(value: bytes, lengths: list[int]) -> tuple[bytes, bytes, bytes]:
    first, second = _BODY + lengths[0], _BODY + lengths[0] + lengths[1]
    return value[_BODY:first], value[first:second], value[second:]


def _corrupt(key: bytes, reason: str) -> CorruptRecordError:
    return CorruptRecordError(f"record {key.hex()} is corrupt: {reason}")
