"""What the cache keeps count of: the recipe, the source and the classes that a request names."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from cache.key import Scalar, canonical_fields

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
