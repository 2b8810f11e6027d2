"""One entry of the cache and its bytes: header, request, scores, image, under one checksum.

The bytes before a record's content: magic, sizes, and the checksum over all of it.
"""

import hashlib
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple, Self, TypeAlias
from zlib import crc32

from cache.codecs import MAX_IMAGE_BYTES, Codec, Pixels, checked_image, codec_numbered
from cache.errors import CacheError, CorruptRecordError
from cache.keys import (
    Facts,
    Scalar,
    canonical_bytes,
    canonical_fields,
    decode_fields,
    digest_of,
    facts_of,
)

Bytes: TypeAlias = bytes | memoryview
"""A record as it was read: a copy, or LMDB's own page while its transaction runs."""

MAGIC = b"OARC"
RECORD_VERSION = 2
"""Of the bytes of a record, apart from the schema of the tables it is kept in."""

# magic, version, codec, zero, height, width, created, position, lengths of request/scores/image
HEADER = struct.Struct(">4sHBBIIdQIII")
_PERSON = b"online-aug rec 1"
_CRC_BYTES, _BLAKE2B_BYTES = 4, 16


class Header(NamedTuple):
    """What a record says of itself, unchecked."""

    version: int
    codec: int
    height: int
    width: int
    created: float
    position: int
    start: int
    """Where the request starts, behind the checksum; then where scores and image do."""
    scores: int
    image: int
    end: int

    @classmethod
    def read(cls, value: Bytes) -> "Header":
        """The header that `value` starts with.

        Raises:
            CorruptRecordError: If it starts with none.
        """
        if len(value) < HEADER.size:
            raise CorruptRecordError(f"it has {len(value)} bytes, a header has {HEADER.size}")
        magic, version, codec, zero, height, width, created, position, *lengths = (
            HEADER.unpack_from(value)
        )
        if magic != MAGIC or version not in CHECKSUMS or zero:
            raise CorruptRecordError("its header is not one of this version's")
        start = HEADER.size + CHECKSUMS[version].size
        scores = start + lengths[0]
        image = scores + lengths[1]
        end = image + lengths[2]
        return cls(version, codec, height, width, created, position, start, scores, image, end)

    def has_checksum(self, value: Bytes) -> bool:
        """Whether the checksum in `value` is that of the rest of it."""
        head, found = value[: HEADER.size], value[HEADER.size : self.start]
        return CHECKSUMS[self.version].of(value[self.start :], head) == found


class Checksum(NamedTuple):
    """How the records of a version are vouched for."""

    size: int
    of: Callable[[Bytes, Bytes], bytes]
    """Takes what is behind the checksum, and the header before it."""


def seal(header: Bytes, body_crc: int) -> bytes:
    """The checksum of the newest version's records, of the CRC-32 of what is behind it."""
    return crc32(header, body_crc).to_bytes(_CRC_BYTES, "big")


def _crc_32(body: Bytes, header: Bytes) -> bytes:
    return seal(header, crc32(body))


def _blake2b(body: Bytes, header: Bytes) -> bytes:
    hasher = hashlib.blake2b(body, digest_size=_BLAKE2B_BYTES, person=_PERSON)
    hasher.update(header)
    return hasher.digest()


CHECKSUMS = {1: Checksum(_BLAKE2B_BYTES, _blake2b), 2: Checksum(_CRC_BYTES, _crc_32)}
"""By the version of a record; version 1 was written under schemas 1 and 2."""
BODY = HEADER.size + CHECKSUMS[RECORD_VERSION].size
"""Where the request of the newest version's records starts."""


@dataclass(frozen=True, eq=False)
class Entry:
    """What is offered to the cache: a generated image with the request that decided its pixels."""

    request: Mapping[str, Scalar]
    image: Pixels
    """uint8, `h w 3`."""
    scores: Mapping[str, float] = field(default_factory=dict)
    """What the gate measured, by name."""

    @cached_property
    def encoded_fields(self) -> dict[str, bytes]:
        """The request as it was when this was first asked for, by `canonical_fields`."""
        return canonical_fields(self.request)

    @cached_property
    def encoded_request(self) -> bytes:
        """Canonical encoding of the request, of which its key is the digest."""
        return b"".join(self.encoded_fields.values())


@dataclass(kw_only=True, eq=False)
class Record:
    """What the cache returns: its checksum was right, each part is decoded when first asked for.

    Not to be written to; not frozen, since setting the fields of a frozen one takes longer than
    finding the record.
    """

    key: bytes
    created: float
    """Unix time, s."""
    codec: Codec
    height: int
    width: int
    """Of the image, px."""
    position: int
    """Its place in the log, from 1."""
    request_bytes: bytes
    """The encoded request, of which `key` is the digest."""
    scores_bytes: bytes
    image_bytes: bytes

    @cached_property
    def image(self) -> Pixels:
        """uint8, `h w 3`, read-only.

        Raises:
            CorruptRecordError: If it does not decode to the size the header gives.
        """
        try:
            return self.codec.decode(self.image_bytes, self.height, self.width)
        except CorruptRecordError as error:
            raise _corrupt(self.key, str(error)) from error

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

    def check(self) -> None:
        """Decode all of it: image, request and scores.

        Raises:
            CorruptRecordError: If one of them cannot be decoded.
        """
        _ = self.image, self.request, self.scores


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
        facts = facts_of(entry.request, entry.encoded_fields)
        self._prepare(entry.encoded_request, facts, entry.scores, data, fixed)

    @classmethod
    def copy(cls, stored: Record) -> Self:
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
        self._parts = (encoded, measured, data)
        self._lengths = (len(encoded), len(measured), len(data))
        self._crc = crc32(data, crc32(measured, crc32(encoded)))

    @property
    def size(self) -> int:
        """Bytes of the sealed record."""
        return BODY + sum(self._lengths)

    def seal(self, position: int) -> bytes:
        """The bytes to store for an entry at that place of the log."""
        header = HEADER.pack(*self._fixed, position, *self._lengths)
        return b"".join((header, seal(header, self._crc), *self._parts))


def parse(key: bytes, value: Bytes) -> Record:
    """The record in `value`, copied out of it and checked against its checksum and its key.

    Raises:
        CorruptRecordError: If a byte of it is not what was written.
    """
    header = _whole(key, value)
    if not header.has_checksum(value):
        raise _corrupt(key, "its checksum does not match")
    _, codec, height, width, created, position, start, scores, image, _ = header
    request = bytes(value[start:scores])
    if digest_of(request) != key:
        raise _corrupt(key, "its request belongs to another key")
    return Record(
        key=key,
        codec=codec_numbered(codec),
        height=height,
        width=width,
        created=created,
        position=position,
        request_bytes=request,
        scores_bytes=bytes(value[scores:image]),
        image_bytes=bytes(value[image:]),
    )


@dataclass(frozen=True, slots=True)
class Glimpse:
    """What the indexes need of a record; its image was not looked at."""

    request: dict[str, Scalar]
    created: float
    position: int


def glimpse(key: bytes, value: Bytes) -> Glimpse:
    """The part of a record that its own key vouches for: the request; and its header, unchecked.

    Raises:
        CorruptRecordError: If the request is not what was written.
    """
    header = _whole(key, value)
    request = bytes(value[header.start : header.scores])
    if digest_of(request) != key:
        raise _corrupt(key, "its request belongs to another key")
    return Glimpse(decode_fields(request), header.created, header.position)


def position_of(value: Bytes) -> int | None:
    """The log position a record names, unchecked; None where there is no whole header."""
    return None if len(value) < HEADER.size else int(HEADER.unpack_from(value)[7])


def _whole(key: bytes, value: Bytes) -> Header:
    try:
        header = Header.read(value)
    except CorruptRecordError as error:
        raise _corrupt(key, str(error)) from error
    if header.end != len(value):
        raise _corrupt(key, f"it has {len(value)} bytes, which is not what its header says")
    return header


def _corrupt(key: bytes, reason: str) -> CorruptRecordError:
    return CorruptRecordError(f"record {key.hex()} is corrupt: {reason}")
