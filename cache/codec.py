"""From pixels to bytes and back: PNG, JPEG and raw, decoded within bounds."""

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
"""An image at rest, uint8 RGB, `h w 3`."""

MAX_SIDE_PX = 8192
MAX_IMAGE_BYTES = 2**28
"""No record holds more: a limit on what a forged header can make a reader allocate."""


@dataclass(frozen=True)
class Codec:
    """One way to keep an image; `number` stands in every record and is never reused."""

    name: str
    number: int
    encode: Callable[[Pixels], bytes]
    _decode: Callable[[bytes, int, int], Pixels]

    def decode(self, data: bytes, height: int, width: int) -> Pixels:
        """The image in `data`, read-only.

        Raises:
            CorruptRecordError: If `data` is no such image or is not of that size.
        """
        if not (0 < height <= MAX_SIDE_PX and 0 < width <= MAX_SIDE_PX):
            raise CorruptRecordError(
                f"image sides must be 1 to {MAX_SIDE_PX} px, got {width} x {height}"
            )
        image = self._decode(data, height, width)
        image.setflags(write=False)
        return image


def checked_image(image: Pixels) -> Pixels:
    """`image` itself, contiguous, if it can be stored.

    Raises:
        CacheError: If it is no uint8 array of shape `h w 3` within the limits.
    """
    array = np.asarray(image)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise CacheError(f"image must be uint8 of shape (h, w, 3), got {array.dtype} {array.shape}")
    if not 0 < min(array.shape[:2]) <= max(array.shape[:2]) <= MAX_SIDE_PX:
        raise CacheError(f"image sides must be 1 to {MAX_SIDE_PX} px, got {array.shape[:2]}")
    return np.ascontiguousarray(array)


def codec_named(name: str) -> Codec:
    """The codec of that name.

    Raises:
        CacheError: If there is none.
    """
    if name not in CODECS:
        raise CacheError(f"codec must be one of {', '.join(CODECS)}, got {name!r}")
    return CODECS[name]


def codec_numbered(number: int) -> Codec:
    """The codec that a record names.

    Raises:
        CorruptRecordError: If there is none.
    """
    for codec in CODECS.values():
        if codec.number == number:
            return codec
    raise CorruptRecordError(f"codec number must be known, got {number}")


def _encode_pillow(image: Pixels, *, format: str, **options: Any) -> bytes:
    buffer = BytesIO()
    PIL.Image.fromarray(image).save(buffer, format=format, **options)
    return buffer.getvalue()


def _decode_pillow(data: bytes, height: int, width: int, *, format: str) -> Pixels:
    try:
        with PIL.Image.open(BytesIO(data), formats=(format,)) as picture:
            # The size is known before a pixel is unpacked, so a lying file costs no memory.
            if picture.size != (width, height) or picture.mode != "RGB":
                raise CorruptRecordError(
                    f"image must be RGB {width} x {height}, got {picture.mode} {picture.size}"
                )
            return np.asarray(picture)
    except CorruptRecordError:
        raise
    except Exception as error:  # a dozen types, by whichever part of the decoder gave up
        raise CorruptRecordError(f"image must decode as {format}, got {error}") from error


def _encode_raw(image: Pixels) -> bytes:
    return image.tobytes()


def _decode_raw(data: bytes, height: int, width: int) -> Pixels:
    if len(data) != height * width * 3:
        raise CorruptRecordError(f"raw image must be {height * width * 3} bytes, got {len(data)}")
    return np.frombuffer(data, np.uint8).reshape(height, width, 3)


def _pillow(name: str, number: int, format: str, **options: Any) -> Codec:
    encode = partial(_encode_pillow, format=format, **options)
    return Codec(name, number, encode, partial(_decode_pillow, format=format))


CODECS = {
    "raw": Codec("raw", 0, _encode_raw, _decode_raw),
    "png": _pillow("png", 1, "PNG", compress_level=1),
    "jpeg": _pillow("jpeg", 2, "JPEG", quality=95, subsampling=0),
}
