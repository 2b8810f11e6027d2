"""Codecs that turn images into bytes and back: raw, PNG, JPEG and WebP.

Decoding is bounded: a forged file cannot make a reader allocate more than its header allows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from typing import Any, TypeAlias

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from cache.errors import CacheError, CorruptRecordError

Pixels: TypeAlias = NDArray[np.uint8]
"""An RGB image, uint8, `h w 3`."""

MAX_SIDE_PX = 8192
MAX_IMAGE_BYTES = 2**28
"""Largest encoded image. Limits what a forged header can make a reader allocate."""
DEFAULT_CODEC = "webp_lossless"
"""The smallest and fastest lossless codec; `docs/RESULTS.md` compares them."""

_CHANNELS = 3
_SLACK_BYTES = 2**16
"""An encoded image is at most this much larger than twice its pixels."""
_LOSSY, _LOSSLESS = b"VP8 ", b"VP8L"
"""Chunk names of the two kinds of WebP. Extended files, which may be animated, are refused."""


@dataclass(frozen=True)
class Codec:
    """A way to encode images. Its `number` is written into every record and is never reused."""

    name: str
    number: int
    is_lossless: bool
    encode: Callable[[Pixels], bytes]
    _decode: Callable[[bytes, int, int], Pixels]

    def decode(self, data: bytes, height: int, width: int) -> Pixels:
        """Return the image in `data`, read-only.

        Raises:
            CorruptRecordError: If `data` is not an image of this codec and size.
        """
        if not (0 < height <= MAX_SIDE_PX and 0 < width <= MAX_SIDE_PX):
            raise CorruptRecordError(
                f"image sides must be 1 to {MAX_SIDE_PX} px, got {width} x {height}"
            )
        most = min(MAX_IMAGE_BYTES, 2 * height * width * _CHANNELS + _SLACK_BYTES)
        if len(data) > most:
            raise CorruptRecordError(
                f"image of {width} x {height} must have at most {most} bytes, got {len(data)}"
            )
        image = self._decode(data, height, width)
        image.setflags(write=False)
        return image


def checked_image(image: Pixels) -> Pixels:
    """Return `image` as a contiguous array.

    Raises:
        CacheError: If it is not a uint8 array of shape `h w 3` with sides within the limits.
    """
    array = np.asarray(image)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise CacheError(f"image must be uint8 of shape (h, w, 3), got {array.dtype} {array.shape}")
    if not 0 < min(array.shape[:2]) <= max(array.shape[:2]) <= MAX_SIDE_PX:
        raise CacheError(f"image sides must be 1 to {MAX_SIDE_PX} px, got {array.shape[:2]}")
    return np.ascontiguousarray(array)


def codec_named(name: str) -> Codec:
    """Return the codec of that name.

    Raises:
        CacheError: If there is no such codec.
    """
    if name not in CODECS:
        raise CacheError(f"codec must be one of {', '.join(CODECS)}, got {name!r}")
    return CODECS[name]


def codec_numbered(number: int) -> Codec:
    """Return the codec that a record names.

    Raises:
        CorruptRecordError: If there is no such codec.
    """
    if number not in _BY_NUMBER:
        raise CorruptRecordError(f"codec number must be known, got {number}")
    return _BY_NUMBER[number]


def _encode_pillow(image: Pixels, *, format: str, **options: Any) -> bytes:
    buffer = BytesIO()
    PIL.Image.fromarray(image).save(buffer, format=format, **options)
    return buffer.getvalue()


def _decode_pillow(data: bytes, height: int, width: int, *, format: str) -> Pixels:
    try:
        with PIL.Image.open(BytesIO(data), formats=(format,)) as picture:
            # Pillow knows the size before it unpacks a pixel, so a forged file costs no memory.
            if picture.size != (width, height) or picture.mode != "RGB":
                raise CorruptRecordError(
                    f"image must be RGB {width} x {height}, got {picture.mode} {picture.size}"
                )
            # Two bytes of a progressive JPEG can cost a pass over all pixels.
            if getattr(picture, "is_animated", False) or "progressive" in picture.info:
                raise CorruptRecordError(f"{format} image must be a still one in a single pass")
            return np.asarray(picture)
    except CorruptRecordError:
        raise
    except Exception as error:  # a dozen types, depending on which part of the decoder gave up
        raise CorruptRecordError(f"image must decode as {format}, got {error}") from error


def _decode_webp(data: bytes, height: int, width: int, *, chunk: bytes) -> Pixels:
    # Pillow allocates two canvases of the size in the header before it tells that size.
    if not _is_one_chunk(data, chunk) or webp_sides(data) != (width, height):
        name = chunk.decode().strip()
        raise CorruptRecordError(f"image must be a single {name} image of {width} x {height}")
    return _decode_pillow(data, height, width, format="WEBP")


def _is_one_chunk(data: bytes, chunk: bytes) -> bool:
    size = _little(data, 16, 4)
    is_whole = _little(data, 4, 4) + 8 == len(data) == size + size % 2 + 20
    return is_whole and data[12:16] == chunk


def webp_sides(data: bytes) -> tuple[int, int] | None:
    """Return width and height in px by the first header of a WebP file; None for other files."""
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP":
        return None
    match data[12:16]:
        case b"VP8 ":
            return _little(data, 26, 2) % 2**14, _little(data, 28, 2) % 2**14
        case b"VP8L":
            sides = _little(data, 21, 4)
            return sides % 2**14 + 1, (sides >> 14) % 2**14 + 1
        case b"VP8X":
            return _little(data, 24, 3) + 1, _little(data, 27, 3) + 1
    return None


def _little(data: bytes, start: int, count: int) -> int:
    return int.from_bytes(data[start : start + count], "little")


def _encode_raw(image: Pixels) -> bytes:
    return image.tobytes()


def _decode_raw(data: bytes, height: int, width: int) -> Pixels:
    size = height * width * _CHANNELS
    if len(data) != size:
        raise CorruptRecordError(f"raw image must be {size} bytes, got {len(data)}")
    return np.frombuffer(data, np.uint8).reshape(height, width, _CHANNELS)


_webp = partial(_encode_pillow, format="WEBP")

_ALL = (
    Codec("raw", 0, True, _encode_raw, _decode_raw),
    Codec(
        "png",
        1,
        True,
        partial(_encode_pillow, format="PNG", compress_level=1),
        partial(_decode_pillow, format="PNG"),
    ),
    Codec(
        "jpeg",
        2,
        False,
        partial(_encode_pillow, format="JPEG", quality=95, subsampling=0),
        partial(_decode_pillow, format="JPEG"),
    ),
    Codec(
        "webp_lossless",
        3,
        True,
        partial(_webp, lossless=True, method=0, quality=0),
        partial(_decode_webp, chunk=_LOSSLESS),
    ),
    Codec(
        "webp_lossy",
        4,
        False,
        partial(_webp, method=2, quality=90),
        partial(_decode_webp, chunk=_LOSSY),
    ),
)
CODECS = {codec.name: codec for codec in _ALL}
_BY_NUMBER = {codec.number: codec for codec in _ALL}
