"""From a request to its key: a canonical encoding of named scalars, and its digest.

`docs/CACHE.md` gives the encoding byte by byte, with test vectors, for other programs.

What the cache keeps count of: the recipe, the source and the classes that a request names.
"""

import hashlib
import math
import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

from cache.errors import CacheError, CorruptRecordError

Scalar: TypeAlias = None | bool | int | float | str

KEY_BYTES = 32
"""Length of every key."""

_CONTENT_DIGEST_BYTES = 16
_PERSON = b"online-aug key 1"
_FIELD = struct.Struct(">H")
_VALUE = struct.Struct(">cI")
_FLOAT = struct.Struct(">d")
_FLOAT_VALUE = struct.Struct(">cId")
_MAX_NAME_BYTES = 2**16 - 1
_MAX_VALUE_BYTES = 2**20
_MAX_DIGITS = 100
_TOO_LARGE = 10**_MAX_DIGITS


def canonical_bytes(fields: Mapping[str, Scalar]) -> bytes:
    """The one encoding of `fields`, whatever their order: different fields, different bytes.

    Types count: `True`, `1` and `1.0` differ. `-0.0` is written as `0.0`, its equal.

    Raises:
        CacheError: If a name is no string or a value is no scalar, is not a number, or is too long.
    """
    return b"".join(canonical_fields(fields).values())


def canonical_fields(fields: Mapping[str, Scalar]) -> dict[str, bytes]:
    """The parts of `canonical_bytes` by name, in its order; those of a subset encode the subset."""
    names = sorted(fields, key=_raw_name)
    return {name: _encode_name(name) + _encode_value(name, fields[name]) for name in names}


def decode_fields(data: bytes) -> dict[str, Scalar]:
    """The fields that `canonical_bytes` encoded; accepts nothing that it would not write.

    Raises:
        CorruptRecordError: If `data` is not a canonical encoding.
    """
    fields: dict[str, Scalar] = {}
    offset = 0
    try:
        while offset < len(data):
            name, value, offset = _decode_field(data, offset)
            fields[name] = value
        is_canonical = canonical_bytes(fields) == data
    except (struct.error, ValueError) as error:
        raise CorruptRecordError(f"fields must be canonically encoded, got {error}") from error
    if not is_canonical:
        raise CorruptRecordError("fields must be sorted, distinct and in their shortest form")
    return fields


def request_key(fields: Mapping[str, Scalar]) -> bytes:
    """The 32-byte key of a request: BLAKE2b-256 of its canonical encoding.

    Example:
        >>> request_key({"method": "diff_mix", "variant": 0}).hex()[:16]
        'd67bf61cbc112055'
    """
    return digest_of(canonical_bytes(fields))


def digest_of(canonical: bytes) -> bytes:
    """The key of a request that is already encoded."""
    return hashlib.blake2b(canonical, digest_size=KEY_BYTES, person=_PERSON).digest()


def check_keys(keys: Iterable[bytes]) -> None:
    """Refuse what cannot be a key.

    Raises:
        CacheError: If one of `keys` is not 32 bytes.
    """
    for key in keys:
        if not isinstance(key, bytes) or len(key) != KEY_BYTES:
            raise CacheError(f"key must be {KEY_BYTES} bytes, got {key!r}")


def first_key(prefix: str) -> bytes:
    """The lowest key whose hexadecimal form starts with `prefix`.

    Raises:
        CacheError: If `prefix` is not hexadecimal or longer than a key.
    """
    if not re.fullmatch(r"[0-9a-fA-F]{0,64}", prefix):
        raise CacheError(
            f"key must be at most {2 * KEY_BYTES} hexadecimal digits, got {prefix[:80]!r}"
        )
    return bytes.fromhex(prefix.ljust(2 * KEY_BYTES, "0"))


def content_digest(content: bytes) -> str:
    """Digest by which requests name the file of an image: BLAKE2b, 16 bytes, hexadecimal."""
    return hashlib.blake2b(content, digest_size=_CONTENT_DIGEST_BYTES).hexdigest()


@lru_cache(maxsize=256)
def _raw_name(name: str) -> bytes:
    if not isinstance(name, str):
        raise CacheError(f"field names must be strings, got {name!r}")
    return _utf8(name, name, _MAX_NAME_BYTES)


@lru_cache(maxsize=256)
def _encode_name(name: str) -> bytes:
    raw = _raw_name(name)
    return _FIELD.pack(len(raw)) + raw


def _encode_value(name: str, value: Scalar) -> bytes:
    if isinstance(value, str):
        raw = _utf8(name, value, _MAX_VALUE_BYTES)
        return _VALUE.pack(b"s", len(raw)) + raw
    if isinstance(value, float):
        return _FLOAT_VALUE.pack(b"f", _FLOAT.size, _checked(name, value))
    if value is None:
        return _VALUE.pack(b"n", 0)
    if isinstance(value, bool):
        return _VALUE.pack(b"b", 1) + (b"\x01" if value else b"\x00")
    if isinstance(value, int):
        raw = _decimal(name, int(value))
        return _VALUE.pack(b"i", len(raw)) + raw
    raise CacheError(
        f"field {name!r} must be None, bool, int, float or str, got {type(value).__name__}"
    )


def _decimal(name: str, value: int) -> bytes:
    if abs(value) >= _TOO_LARGE:
        raise CacheError(f"field {name!r} must have at most {_MAX_DIGITS} digits")
    return str(value).encode()


def _checked(name: str, value: float) -> float:
    if math.isnan(value):
        raise CacheError(f"field {name!r} must be a number, got nan")
    return value + 0.0  # turns -0.0 into 0.0


def _utf8(name: str, text: str, limit: int) -> bytes:
    try:
        raw = text.encode()
    except UnicodeEncodeError as error:
        raise CacheError(f"field {name!r} must be encodable as UTF-8") from error
    if len(raw) > limit:
        raise CacheError(f"field {name[:40]!r} must be at most {limit} bytes, got {len(raw)}")
    return raw


def _decode_field(data: bytes, offset: int) -> tuple[str, Scalar, int]:
    (length,) = _FIELD.unpack_from(data, offset)
    offset += _FIELD.size
    name = data[offset : offset + length].decode()
    tag, size = _VALUE.unpack_from(data, offset + length)
    start = offset + length + _VALUE.size
    if start + size > len(data):
        raise ValueError(f"a field of {size} bytes where {len(data) - start} are left")
    return name, _decode_value(tag, data[start : start + size]), start + size


def _decode_value(tag: bytes, raw: bytes) -> Scalar:
    match tag:
        case b"n":
            return None
        case b"b":
            return raw == b"\x01"
        case b"i" if len(raw) <= _MAX_DIGITS + 1:
            return int(raw)
        case b"f":
            return float(_FLOAT.unpack(raw)[0])
        case b"s":
            return raw.decode()
    raise ValueError(f"the type tag {tag!r}")


ID_BYTES = 16
"""Length of the digests that recipes and sources are indexed by."""

NO_SOURCE = bytes(ID_BYTES)
"""Stands where a request names no source."""

VARYING = frozenset(
    {
        *("source_digest", "source_label", "target_label", "target_digest", "prompt", "strength"),
        *("variant", "noise_seed", "saliency_version", "image_digest"),
        *("source_class", "target_class", "source_file"),
    }
)
"""Fields that differ from image to image; all others of a request are its recipe."""

_RECIPE_PERSON = b"online-aug rcp 1"
_SOURCE_PERSON = b"online-aug src 1"
_LABEL_CHARACTERS = 64


@dataclass(frozen=True)
class Facts:
    """The part of a request that the indexes and the accounting hold."""

    recipe: bytes
    """Canonical encoding of the fields that are its recipe."""
    recipe_id: bytes
    source_id: bytes
    counters: tuple[str, ...]
    """Names of the numbers that count it, such as `method/diff_mix`."""


def facts_of(request: Mapping[str, Scalar], encoded: Mapping[str, bytes] | None = None) -> Facts:
    """The recipe, source and counters of a request, whatever program made it.

    Args:
        request: Its fields.
        encoded: What `canonical_fields` makes of them, where it is known already.
    """
    parts = canonical_fields(request) if encoded is None else encoded
    recipe = b"".join([part for name, part in parts.items() if name not in VARYING])
    source = request.get("source_digest")
    return Facts(recipe, recipe_id(recipe), source_id(source), tuple(_counters(request)))


def recipe_of(request: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """The fields of a request that are the same for all images of its recipe.

    Example:
        >>> recipe_of({"method": "diff_mix", "resolution": 256, "variant": 3, "strength": 0.5})
        {'method': 'diff_mix', 'resolution': 256}
    """
    return {name: value for name, value in request.items() if name not in VARYING}


@lru_cache(maxsize=256)
def recipe_id(recipe: bytes) -> bytes:
    """The digest of an encoded recipe."""
    return hashlib.blake2b(recipe, digest_size=ID_BYTES, person=_RECIPE_PERSON).digest()


def source_id(source_digest: Scalar) -> bytes:
    """The digest of the text that names a source; `NO_SOURCE` for anything but a text."""
    if not isinstance(source_digest, str):
        return NO_SOURCE
    text = source_digest.encode(errors="surrogatepass")
    return hashlib.blake2b(text, digest_size=ID_BYTES, person=_SOURCE_PERSON).digest()


def _counters(request: Mapping[str, Scalar]) -> list[str]:
    method, strength = request.get("method"), request.get("strength")
    names = [f"method/{_short(method) if isinstance(method, str) else ''}"]
    for name in ("source_label", "target_label"):
        label = request.get(name)
        if isinstance(label, int | str) and not isinstance(label, bool):
            names.append(f"{name}/{_short(str(label))}")
    if isinstance(strength, float) and 0 <= strength <= 1:
        names.append(f"strength/{strength:.2f}")  # at most 101 of them, however it was drawn
    return names


def _short(label: str) -> str:
    return label[:_LABEL_CHARACTERS]
