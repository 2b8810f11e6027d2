"""Records of the cache and their bytes: header, checksum, request, scores, class names, image."""

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple, Self, TypeAlias
from zlib import crc32

from cache.codecs import MAX_IMAGE_BYTES, Codec, Pixels, checked_image, codec_numbered
from cache.errors import CacheError, CorruptRecordError
from cache.keys import (
    IndexTerms,
    Scalar,
    canonical_bytes,
    canonical_fields,
    decode_fields,
    digest_of,
    index_terms,
)

Bytes: TypeAlias = bytes | memoryview
"""A stored record: a copy, or LMDB's own page while its transaction runs."""

MAGIC = b"OARC"
RECORD_VERSION = 3
"""Version of the bytes of a record; the tables around it have a schema version of their own."""
# magic, version, codec, zero, height, width, created, position, then the lengths of request,
# scores, class names and image
HEADER = struct.Struct(">4sHBBIIdQIIII")
_POSITION_FIELD = 7
_CHECKSUM_BYTES = 4
BODY = HEADER.size + _CHECKSUM_BYTES
"""Offset of the request, which follows header and checksum."""


@dataclass(frozen=True, eq=False)
class Entry:
    """A generated image with the request that decided its pixels, offered to the cache."""

    request: Mapping[str, Scalar]
    image: Pixels
    """uint8, `h w 3`."""
    scores: Mapping[str, float] = field(default_factory=dict)
    """Measurements of the gate by name."""
    classes: Mapping[str, str] = field(default_factory=dict)
    """Names that labels stand for: `data_set`, `source_class`, `target_class`. They decide no
    pixels, so the key does not depend on them."""

    @cached_property
    def encoded_fields(self) -> dict[str, bytes]:
        """The request by `canonical_fields`, as it was when this was first asked for."""
        return canonical_fields(self.request)

    @cached_property
    def encoded_request(self) -> bytes:
        """Canonical encoding of the request. Its digest is the key."""
        return b"".join(self.encoded_fields.values())


class Draft:
    """An encoded record that lacks only its position in the log.

    It is made before any lock is taken, so that a write transaction has little left to do.
    """

    def __init__(self, entry: Entry, codec: Codec, created: float) -> None:
        """Encode `entry`, created at that Unix time in s.

        Raises:
            CacheError: If its image, request or scores cannot be stored.
        """
        image = checked_image(entry.image)
        data = codec.encode(image)
        if len(data) > MAX_IMAGE_BYTES:
            raise CacheError(f"image must encode to at most {MAX_IMAGE_BYTES} bytes")
        height, width, _ = image.shape
        fixed = (codec.number, 0, height, width, created)
        terms = index_terms(entry.request, entry.encoded_fields, entry.classes)
        described = _described(entry.scores, entry.classes)
        self._prepare(entry.encoded_request, terms, described, data, fixed)

    @classmethod
    def copy(cls, stored: "Record") -> Self:
        """Draft the same record for another position or cache, without encoding its image again."""
        draft = cls.__new__(cls)
        fixed = (stored.codec.number, 0, stored.height, stored.width, stored.created)
        terms = index_terms(stored.request, classes=stored.classes)
        described = _described(stored.scores, stored.classes)
        encoded = canonical_bytes(stored.request)
        draft._prepare(encoded, terms, described, stored.image_bytes, fixed)
        return draft

    def _prepare(
        self,
        encoded: bytes,
        terms: IndexTerms,
        described: tuple[bytes, bytes],
        data: bytes,
        fixed: tuple[float, ...],
    ) -> None:
        self.key = digest_of(encoded)
        self.terms = terms
        self._fixed = (MAGIC, RECORD_VERSION, *fixed)
        self._parts = (encoded, *described, data)
        self._lengths = tuple(map(len, self._parts))
        self._crc = crc32(data, crc32(b"".join((encoded, *described))))

    @property
    def size(self) -> int:
        """Bytes of the whole record."""
        return BODY + sum(self._lengths)

    def seal(self, position: int) -> bytes:
        """Return the bytes of the record at that position of the log."""
        header = HEADER.pack(*self._fixed, position, *self._lengths)
        return b"".join((header, checksum(header, self._crc), *self._parts))


def _described(scores: Mapping[str, float], classes: Mapping[str, str]) -> tuple[bytes, bytes]:
    measured = canonical_bytes({name: float(score) for name, score in scores.items()})
    return measured, encode_classes(classes)


def encode_classes(classes: Mapping[str, str]) -> bytes:
    """Encode the names of a record's data set and classes, with a checksum of their own.

    They are counted when a record is removed whose image is broken.

    Raises:
        CacheError: If one of them is not text.
    """
    if not all(isinstance(name, str) for name in classes.values()):
        raise CacheError(f"classes must be names, got {dict(classes)!r}")
    encoded = canonical_bytes(classes)
    return crc32(encoded).to_bytes(_CHECKSUM_BYTES, "big") + encoded if encoded else b""


def _decode_classes(data: bytes) -> dict[str, str]:
    names = decode_fields(data[_CHECKSUM_BYTES:])
    is_whole = not data or crc32(data[_CHECKSUM_BYTES:]) == int.from_bytes(data[:_CHECKSUM_BYTES])
    if not is_whole or not all(isinstance(name, str) for name in names.values()):
        raise CorruptRecordError("class names must be text with the right checksum")
    return {field: str(name) for field, name in names.items()}


def checksum(header: Bytes, body_crc: int) -> bytes:
    """Return the checksum of a record from its header and the CRC-32 of all behind the checksum."""
    return crc32(header, body_crc).to_bytes(_CHECKSUM_BYTES, "big")


@dataclass(kw_only=True, eq=False)
class Record:
    """A record read from the cache. Its checksum was right; its parts are decoded on first use.

    Do not write to it. It is not frozen, since setting the fields of a frozen dataclass takes
    longer than finding the record.
    """

    key: bytes
    created: float
    """Unix time, s."""
    codec: Codec
    height: int
    width: int
    """Height and width of the image, px."""
    position: int
    """Position in the log, from 1."""
    request_bytes: bytes
    """The encoded request. Its digest is `key`."""
    scores_bytes: bytes
    classes_bytes: bytes
    image_bytes: bytes

    @cached_property
    def image(self) -> Pixels:
        """The image, uint8, `h w 3`, read-only.

        Raises:
            CorruptRecordError: If it does not decode to the size in the header.
        """
        try:
            return self.codec.decode(self.image_bytes, self.height, self.width)
        except CorruptRecordError as error:
            raise _corrupt(self.key, str(error)) from error

    @cached_property
    def request(self) -> dict[str, Scalar]:
        """The fields that decided the pixels.

        Raises:
            CorruptRecordError: If another program did not encode them canonically.
        """
        return decode_fields(self.request_bytes)

    @cached_property
    def scores(self) -> dict[str, float]:
        """Measurements of the gate by name.

        Raises:
            CorruptRecordError: If another program did not encode them canonically as floats.
        """
        scores = decode_fields(self.scores_bytes)
        if not all(isinstance(score, float) for score in scores.values()):
            raise CorruptRecordError("scores must be floats")
        return {name: score for name, score in scores.items() if isinstance(score, float)}

    @cached_property
    def classes(self) -> dict[str, str]:
        """Names of data set and classes: `data_set`, `source_class`, `target_class`.

        Raises:
            CorruptRecordError: If another program did not encode them canonically as text.
        """
        return _decode_classes(self.classes_bytes)

    def class_name(self, side: str) -> str | None:
        """Return the name of the `source` or `target` class; None if the record does not say."""
        field = f"{side}_class"
        name = self.classes.get(field, self.request.get(field))
        return name if isinstance(name, str) else None

    def check(self) -> None:
        """Raise if a part of the record cannot be decoded.

        Raises:
            CorruptRecordError: If image, request, scores or class names cannot be decoded.
        """
        _ = self.image, self.request, self.scores, self.classes


def parse(key: bytes, value: Bytes) -> Record:
    """Copy the record out of `value` and check it against its checksum and its key.

    Raises:
        CorruptRecordError: If a byte has changed since it was written.
    """
    header = _whole_header(key, value)
    if not header.has_checksum(value):
        raise _corrupt(key, "its checksum does not match")
    codec, height, width, created, position, scores, classes, image, _ = header
    request = bytes(value[BODY:scores])
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
        scores_bytes=bytes(value[scores:classes]),
        classes_bytes=bytes(value[classes:image]),
        image_bytes=bytes(value[image:]),
    )


@dataclass(frozen=True, slots=True)
class Summary:
    """The parts of a record that the indexes are made from."""

    request: dict[str, Scalar]
    classes: dict[str, str]
    created: float
    """Unix time, s."""
    position: int


def read_summary(key: bytes, value: Bytes) -> Summary:
    """Return request and class names of a record, each checked, and its header, unchecked.

    Neither the checksum nor the image is looked at.

    Raises:
        CorruptRecordError: If request or class names are not those that were written.
    """
    header = _whole_header(key, value)
    request = bytes(value[BODY : header.scores])
    if digest_of(request) != key:
        raise _corrupt(key, "its request belongs to another key")
    classes = _decode_classes(bytes(value[header.classes : header.image]))
    return Summary(decode_fields(request), classes, header.created, header.position)


def position_in(value: Bytes) -> int | None:
    """Return the log position that a record names, unchecked, or None if its header is cut off."""
    return None if len(value) < HEADER.size else int(HEADER.unpack_from(value)[_POSITION_FIELD])


class Header(NamedTuple):
    """The unchecked header of a record, with the offsets of the parts behind it."""

    codec: int
    height: int
    width: int
    created: float
    position: int
    scores: int
    """Offset of the scores; the request starts at `BODY`."""
    classes: int
    """Offset of the class names."""
    image: int
    """Offset of the image."""
    end: int

    @classmethod
    def read(cls, value: Bytes) -> "Header":
        """Return the header at the start of `value`.

        Raises:
            CorruptRecordError: If `value` does not start with a header.
        """
        if len(value) < HEADER.size:
            raise CorruptRecordError(f"it has {len(value)} bytes, a header has {HEADER.size}")
        magic, version, codec, zero, height, width, created, position, *lengths = (
            HEADER.unpack_from(value)
        )
        if magic != MAGIC or version != RECORD_VERSION or zero:
            raise CorruptRecordError("its header is not one of this version's")
        _, scores, classes, image, end = accumulate(lengths, initial=BODY)
        return cls(codec, height, width, created, position, scores, classes, image, end)

    def has_checksum(self, value: Bytes) -> bool:
        """Return whether the checksum in `value` is right."""
        expected = checksum(value[: HEADER.size], crc32(value[BODY:]))
        return expected == value[HEADER.size : BODY]


def _whole_header(key: bytes, value: Bytes) -> Header:
    try:
        header = Header.read(value)
    except CorruptRecordError as error:
        raise _corrupt(key, str(error)) from error
    if header.end != len(value):
        raise _corrupt(key, f"it has {len(value)} bytes, which is not what its header says")
    return header


def _corrupt(key: bytes, reason: str) -> CorruptRecordError:
    return CorruptRecordError(f"record {key.hex()} is corrupt: {reason}")
