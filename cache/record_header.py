"""The bytes before a record's content: magic, sizes, and the checksum over all of it."""

import hashlib
import struct
from collections.abc import Callable
from typing import NamedTuple, TypeAlias
from zlib import crc32

from cache.errors import CorruptRecordError

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
