"""Keys of requests: named scalars are encoded in one canonical way and digested.

Also says what the indexes and counters of a cache need to know of a request: its recipe, its source
and its classes. `docs/CACHE_FORMAT.md` gives the encoding byte by byte, with test vectors.
"""

import hashlib
import math
import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import TypeAlias

from cache.errors import CacheError, CorruptRecordError

Scalar: TypeAlias = None | bool | int | float | str

KEY_BYTES = 32
"""Length of every key."""
ID_BYTES = 16
"""Length of the digests under which recipes and sources are indexed."""
NO_SOURCE = bytes(ID_BYTES)
"""Source identifier of a request that names no source."""
VARYING = frozenset(
    {
        *("source_digest", "source_label", "target_label", "target_digest", "prompt", "strength"),
        *("variant", "noise_seed", "saliency_version", "image_digest"),
        *("source_class", "target_class", "source_file"),
    }
)
"""Fields that differ from image to image. All other fields of a request are its recipe."""

_CONTENT_DIGEST_BYTES = 16
_KEY_PERSON = b"online-aug key 1"
_RECIPE_PERSON = b"online-aug rcp 1"
_SOURCE_PERSON = b"online-aug src 1"

_NAME_LENGTH = struct.Struct(">H")
_TYPE_AND_LENGTH = struct.Struct(">cI")
_FLOAT = struct.Struct(">d")
_FLOAT_VALUE = struct.Struct(">cId")
_MAX_NAME_BYTES = 2**16 - 1
_MAX_VALUE_BYTES = 2**20
_MAX_DIGITS = 100
_TOO_LARGE = 10**_MAX_DIGITS
_MAX_LABEL_CHARACTERS = 48
SEPARATOR = "\t"
"""Stands between data set and class in the name of a counter."""


def request_key(fields: Mapping[str, Scalar]) -> bytes:
    """Return the key of a request: BLAKE2b-256 of its canonical encoding.

    Raises:
        CacheError: If the fields cannot be encoded; see `canonical_bytes`.

    Example:
        >>> request_key({"method": "diff_mix", "variant": 0}).hex()[:16]
        'd67bf61cbc112055'
    """
    return digest_of(canonical_bytes(fields))


def canonical_bytes(fields: Mapping[str, Scalar]) -> bytes:
    """Encode fields so that different fields, in whatever order, have different bytes.

    Types count: `True`, `1` and `1.0` differ. `-0.0` is written as `0.0`, which it equals.

    Raises:
        CacheError: If a name is not a string, or a value is not a scalar, not a number or too long.
    """
    return b"".join(canonical_fields(fields).values())


def canonical_fields(fields: Mapping[str, Scalar]) -> dict[str, bytes]:
    """Return the parts of `canonical_bytes` by field name, in order.

    The joined parts of some of the fields are the encoding of these fields.
    """
    names = sorted(fields, key=_raw_name)
    return {name: _encode_name(name) + _encode_value(name, fields[name]) for name in names}


def digest_of(canonical: bytes) -> bytes:
    """Return the key of an encoded request."""
    return hashlib.blake2b(canonical, digest_size=KEY_BYTES, person=_KEY_PERSON).digest()


@lru_cache(maxsize=256)
def _raw_name(name: str) -> bytes:
    if not isinstance(name, str):
        raise CacheError(f"field names must be strings, got {name!r}")
    return _utf8(name, name, _MAX_NAME_BYTES)


@lru_cache(maxsize=256)
def _encode_name(name: str) -> bytes:
    raw = _raw_name(name)
    return _NAME_LENGTH.pack(len(raw)) + raw


def _encode_value(name: str, value: Scalar) -> bytes:
    if isinstance(value, str):
        raw = _utf8(name, value, _MAX_VALUE_BYTES)
        return _TYPE_AND_LENGTH.pack(b"s", len(raw)) + raw
    if isinstance(value, float):
        return _FLOAT_VALUE.pack(b"f", _FLOAT.size, _number(name, value))
    if value is None:
        return _TYPE_AND_LENGTH.pack(b"n", 0)
    if isinstance(value, bool):
        return _TYPE_AND_LENGTH.pack(b"b", 1) + (b"\x01" if value else b"\x00")
    if isinstance(value, int):
        raw = _decimal(name, int(value))
        return _TYPE_AND_LENGTH.pack(b"i", len(raw)) + raw
    raise CacheError(
        f"field {name!r} must be None, bool, int, float or str, got {type(value).__name__}"
    )


def _utf8(name: str, text: str, limit: int) -> bytes:
    try:
        raw = text.encode()
    except UnicodeEncodeError as error:
        raise CacheError(f"field {name!r} must be encodable as UTF-8") from error
    if len(raw) > limit:
        raise CacheError(f"field {name[:40]!r} must be at most {limit} bytes, got {len(raw)}")
    return raw


def _number(name: str, value: float) -> float:
    if math.isnan(value):
        raise CacheError(f"field {name!r} must be a number, got nan")
    return value + 0.0  # turns -0.0 into 0.0


def _decimal(name: str, value: int) -> bytes:
    if abs(value) >= _TOO_LARGE:
        raise CacheError(f"field {name!r} must have at most {_MAX_DIGITS} digits")
    return str(value).encode()


def decode_fields(data: bytes) -> dict[str, Scalar]:
    """Return the fields that `canonical_bytes` encoded.

    Raises:
        CorruptRecordError: If `canonical_bytes` would not write `data`.
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


def _decode_field(data: bytes, offset: int) -> tuple[str, Scalar, int]:
    (length,) = _NAME_LENGTH.unpack_from(data, offset)
    offset += _NAME_LENGTH.size
    name = data[offset : offset + length].decode()
    tag, size = _TYPE_AND_LENGTH.unpack_from(data, offset + length)
    start = offset + length + _TYPE_AND_LENGTH.size
    if start + size > len(data):
        raise ValueError(f"a field of {size} bytes with {len(data) - start} left")
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


def check_keys(keys: Iterable[bytes]) -> None:
    """Raise if one of `keys` cannot be a key.

    Raises:
        CacheError: If it is not 32 bytes.
    """
    for key in keys:
        if not isinstance(key, bytes) or len(key) != KEY_BYTES:
            raise CacheError(f"key must be {KEY_BYTES} bytes, got {key!r}")


def first_key(prefix: str) -> bytes:
    """Return the lowest key whose hexadecimal form starts with `prefix`.

    Raises:
        CacheError: If `prefix` is not hexadecimal or is longer than a key.
    """
    if not re.fullmatch(r"[0-9a-fA-F]{0,64}", prefix):
        raise CacheError(
            f"key must be at most {2 * KEY_BYTES} hexadecimal digits, got {prefix[:80]!r}"
        )
    return bytes.fromhex(prefix.ljust(2 * KEY_BYTES, "0"))


def content_digest(content: bytes) -> str:
    """Return the digest by which requests name an image file: BLAKE2b, 16 bytes, hexadecimal."""
    return hashlib.blake2b(content, digest_size=_CONTENT_DIGEST_BYTES).hexdigest()


def recipe_of(request: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """Return the fields of a request that are the same for all images of its recipe.

    Example:
        >>> recipe_of({"method": "diff_mix", "resolution": 256, "variant": 3, "strength": 0.5})
        {'method': 'diff_mix', 'resolution': 256}
    """
    return {name: value for name, value in request.items() if name not in VARYING}


@dataclass(frozen=True)
class IndexTerms:
    """The recipe, the source and the counters of a request."""

    recipe: bytes
    """Canonical encoding of the fields that are its recipe."""
    recipe_id: bytes
    source_id: bytes
    counters: tuple[str, ...]
    """Names of the counters that it is counted in, such as `method/diff_mix`."""


def label_of(request: Mapping[str, Scalar], side: str) -> int | None:
    """Return the label of the `source` or `target` class, None if the request has none."""
    label = request.get(f"{side}_label")
    is_label = isinstance(label, int) and not isinstance(label, bool) and label >= 0
    return int(label) if is_label and label is not None else None


def index_terms(
    request: Mapping[str, Scalar],
    encoded: Mapping[str, bytes] | None = None,
    classes: Mapping[str, str] = MappingProxyType({}),
) -> IndexTerms:
    """Return the recipe, the source and the counters of a request.

    Args:
        request: Its fields, from whatever program.
        encoded: `canonical_fields(request)`, if the caller has it.
        classes: Names of its data set and classes, as in `Entry.classes`.
    """
    parts = canonical_fields(request) if encoded is None else encoded
    recipe = b"".join([part for name, part in parts.items() if name not in VARYING])
    source = request.get("source_digest")
    return IndexTerms(
        recipe, recipe_id(recipe), source_id(source), tuple(_counters(request, classes))
    )


@lru_cache(maxsize=256)
def recipe_id(recipe: bytes) -> bytes:
    """Return the identifier of an encoded recipe."""
    return hashlib.blake2b(recipe, digest_size=ID_BYTES, person=_RECIPE_PERSON).digest()


def source_id(source_digest: Scalar) -> bytes:
    """Return the identifier of a source, or `NO_SOURCE` if `source_digest` is not a string."""
    if not isinstance(source_digest, str):
        return NO_SOURCE
    text = source_digest.encode(errors="surrogatepass")
    return hashlib.blake2b(text, digest_size=ID_BYTES, person=_SOURCE_PERSON).digest()


def _counters(request: Mapping[str, Scalar], classes: Mapping[str, str]) -> list[str]:
    method, strength = request.get("method"), request.get("strength")
    data_set = _shortened(classes.get("data_set", ""))
    names = [f"method/{_shortened(method) if isinstance(method, str) else ''}"]
    names.append(f"data_set/{data_set}")
    for side in ("source", "target"):
        label = request.get(f"{side}_label")
        name = classes.get(f"{side}_class", request.get(f"{side}_class"))
        is_label = isinstance(label, int | str) and not isinstance(label, bool)
        words = [str(label)] if is_label else []
        if words or isinstance(name, str):
            words += [name] if isinstance(name, str) else []
            names.append(f"{side}_class/{data_set}{SEPARATOR}{_shortened(' '.join(words))}")
    if isinstance(strength, float) and 0 <= strength <= 1:
        names.append(f"strength/{strength:.2f}")  # at most 101 counters, however it was drawn
    return names


def _shortened(label: str) -> str:
    return label.replace(SEPARATOR, " ")[:_MAX_LABEL_CHARACTERS]
