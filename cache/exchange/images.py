"""Image files from records and records from image files, their bytes kept where they can be."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BytesIO

import numpy as np
import PIL.Image

from cache.codec import CODECS, MAX_SIDE_PX, Codec, Pixels, webp_sides
from cache.errors import CacheError, CorruptRecordError
from cache.key import Scalar, canonical_bytes, digest_of
from cache.record import Record

_CODECS = {"PNG": ("png",), "JPEG": ("jpeg",), "WEBP": ("webp_lossless", "webp_lossy")}
"""Codecs whose bytes are files, by Pillow's name of the format."""
_SUFFIXES = {"png": ".png", "jpeg": ".jpg", "webp_lossless": ".webp", "webp_lossy": ".webp"}


@dataclass(frozen=True, kw_only=True)
class Description:
    """All of a record but its image."""

    request: Mapping[str, Scalar]
    created: float
    """Unix time, s."""
    scores: Mapping[str, float] = field(default_factory=dict)


def as_file(stored: Record) -> tuple[str, bytes]:
    """Suffix and content of an image file: the record's bytes, PNG of the same pixels if raw."""
    if suffix := _SUFFIXES.get(stored.codec.name):
        return suffix, stored.image_bytes
    return ".png", as_png(stored)


def as_png(stored: Record) -> bytes:
    """The record's pixels as a PNG file.

    Raises:
        CorruptRecordError: If they cannot be decoded.
    """
    if stored.codec.name == "png":
        return stored.image_bytes
    return CODECS["png"].encode(stored.image)


def from_file(content: bytes, description: Description) -> Record:
    """The image of a PNG, JPEG or WebP file under that description.

    A still RGB image is kept byte for byte, any other is kept as PNG of its pixels in RGB.

    Raises:
        CacheError: If it is no whole image of such a format or too large.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of decoders: what counts is whether pixels come out
            codec, kept, (width, height) = _as_codec(content)
    except CacheError:
        raise
    except Exception as error:  # a dozen types, by whichever part of the decoder gave up
        reason = str(error).splitlines()[:1] or [type(error).__name__]
        raise CorruptRecordError(f"image must decode: {reason[0][:200]}") from error
    request = canonical_bytes(description.request)
    return Record(
        key=digest_of(request),
        position=0,  # it gets one when it is put
        request_bytes=request,
        scores_bytes=canonical_bytes(description.scores),
        created=description.created,
        codec=codec,
        height=height,
        width=width,
        image_bytes=kept,
    )


def pixels_of(content: bytes) -> Pixels:
    """The pixels of a PNG, JPEG or WebP file in RGB.

    Raises:
        CacheError: If it is no whole image of such a format or too large.
    """
    encoded = from_file(content, Description(request={}, created=0.0))
    return encoded.codec.decode(encoded.image_bytes, encoded.height, encoded.width)


def _as_codec(content: bytes) -> tuple[Codec, bytes, tuple[int, int]]:
    sides = webp_sides(content)
    if sides is not None:  # Pillow allocates them as it opens the file
        _check_sides(*sides)
    with PIL.Image.open(BytesIO(content), formats=tuple(_CODECS)) as picture:
        width, height = picture.size
        _check_sides(width, height)
        is_plain = picture.mode == "RGB" and getattr(picture, "n_frames", 1) == 1
        for name in _CODECS.get(picture.format or "", ()) if is_plain else ():
            if name in CODECS and _is_decoded_by(CODECS[name], content, picture.size):
                return CODECS[name], content, picture.size
        pixels = np.asarray(picture.convert("RGB"))
    return CODECS["png"], CODECS["png"].encode(pixels), (width, height)


def _is_decoded_by(codec: Codec, content: bytes, size: tuple[int, int]) -> bool:
    try:
        codec.decode(content, size[1], size[0])
    except CorruptRecordError:
        return False
    return True


def _check_sides(width: int, height: int) -> None:
    # Known from the header, before a pixel is unpacked.
    if not 0 < min(width, height) <= max(width, height) <= MAX_SIDE_PX:
        raise CorruptRecordError(
            f"image sides must be 1 to {MAX_SIDE_PX} px, got {width} x {height}"
        )
