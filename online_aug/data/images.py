"""Decode image files of any mode to uint8 RGB; a broken or hostile file raises one clear error."""

import io
import os
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
import PIL.ExifTags
import PIL.features
import PIL.Image
import PIL.ImageOps
import PIL.PngImagePlugin
from jaxtyping import Float, UInt8

from online_aug.documents import open_regular
from online_aug.errors import UserError, escaped
from online_aug.file_digests.plain_images import (
    END_OF_JPEG,
    END_OF_PNG,
    HEAD_BYTES,
    MAX_PIXELS,
    TAIL_BYTES,
    is_plain_image,
)

# By Pillow's name of the format. Only decoders that run in this process: for an EPS file Pillow
# would call Ghostscript.
_SUFFIXES = {
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "JPEG": (".jfif", ".jpe", ".jpeg", ".jpg"),
    "PNG": (".png",),
    "PPM": (".pbm", ".pgm", ".pnm", ".ppm"),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
}
if PIL.features.check("avif"):
    _SUFFIXES["AVIF"] = (".avif",)
if PIL.features.check("jpg_2000"):
    _SUFFIXES["JPEG2000"] = (".jp2", ".j2k", ".jpx")
HEIF_SUFFIXES, HEIF_PACKAGE = (".heic", ".heif", ".hif"), "pillow-heif"
if find_spec("pillow_heif"):
    import pillow_heif

    pillow_heif.register_heif_opener()
    _SUFFIXES["HEIF"] = HEIF_SUFFIXES
IMAGE_SUFFIXES = frozenset(suffix for suffixes in _SUFFIXES.values() for suffix in suffixes)
"""Endings of the file names that count as images, in lower case."""
WAY_OUT = "mend or remove it, or set data.on_bad_image=skip"
_ENDS = {"JPEG": END_OF_JPEG, "PNG": END_OF_PNG}
"""What the last bytes of a whole file hold, by its format."""
# A colour profile or text of a PNG may unpack to more than Pillow's limit of 1 MiB.
PIL.PngImagePlugin.MAX_TEXT_CHUNK = max(PIL.PngImagePlugin.MAX_TEXT_CHUNK, 2**26)


class BadImageError(UserError):
    """An image cannot be read; the message names the file and the reason."""


def read_image(path: Path) -> UInt8[np.ndarray, "h w 3"]:
    """Read the first frame of an image file, with its EXIF rotation applied.

    Raises:
        BadImageError: If the file is missing, broken, too large, or its range of values unknown.
    """
    return decode_image(read_bytes(path), str(path))


def read_bytes(path: Path) -> bytes:
    """Read a whole regular file.

    Raises:
        BadImageError: If it cannot be read, or is a pipe, socket or device.
    """
    try:
        with open_regular(path) as file:
            return file.read()
    except OSError as error:
        raise _bad(str(path), error) from error


def decode_image(content: bytes, name: str) -> UInt8[np.ndarray, "h w 3"]:
    """Decode the content of an image file as `read_image` does; errors call it `name`.

    Raises:
        BadImageError: If it is broken, too large, or its range of values unknown.
    """
    # On a damaged file PIL's decoders raise nearly anything: OSError, SyntaxError, struct.error,
    # zlib.error, IndexError, ... All of them mean the same here.
    try:
        with _opened(io.BytesIO(content)) as image:
            _check_range(image)
            if _is_plain_jpeg(image, content):
                return _decode_jpeg(content)
            return to_rgb(PIL.ImageOps.exif_transpose(image))
    except Exception as error:
        raise _bad(name, error) from error


def check_header(path: Path) -> None:
    """Check format, size and range of an image file; decode it only if it may have been cut short.

    Raises:
        BadImageError: If it is not an image, has more than `MAX_PIXELS` pixels, has been cut, or
            the range of its values is unknown.
    """
    if not _is_whole(partial(open_regular, path), str(path)):
        read_image(path)


def check_content(content: bytes, name: str) -> None:
    """Check an image in memory as `check_header` does; errors call it `name`.

    Raises:
        BadImageError: As `check_header`.
    """
    if not _is_whole(partial(io.BytesIO, content), name):
        decode_image(content, name)


def _is_whole(open_file: Callable[[], BinaryIO], name: str) -> bool:
    try:
        with open_file() as file:
            if is_plain_image(file.read(HEAD_BYTES), _tail(file)):
                return True
            file.seek(0)
            with _opened(file) as image:
                _check_range(image)
                return _ends_whole(file, image.format or "")
    except Exception as error:  # as in decode_image
        raise _bad(name, error) from error


def _ends_whole(file: BinaryIO, format: str) -> bool:
    size = file.seek(0, os.SEEK_END)
    if format == "WEBP":
        file.seek(4)
        return int.from_bytes(file.read(4), "little") + 8 <= size
    tail = _tail(file)
    if format == "GIF":
        return tail.rstrip(b"\0").endswith(b";")
    return format in _ENDS and _ENDS[format] in tail


def _tail(file: BinaryIO) -> bytes:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - TAIL_BYTES))
    return file.read()


def image_size(path: Path) -> tuple[int, int]:
    """Return height and width of an image with its EXIF rotation applied, px.

    Raises:
        BadImageError: As `check_header`.
    """
    return _size(partial(open_regular, path), str(path))


def content_size(content: bytes, name: str) -> tuple[int, int]:
    """Return the size of an image in memory as `image_size` does; errors call it `name`.

    Raises:
        BadImageError: As `check_header`.
    """
    return _size(partial(io.BytesIO, content), name)


def _size(open_file: Callable[[], BinaryIO], name: str) -> tuple[int, int]:
    try:
        with open_file() as file, _opened(file) as image:
            width, height = image.size
            is_turned = image.getexif().get(PIL.ExifTags.Base.Orientation, 1) >= 5
            return (width, height) if is_turned else (height, width)
    except Exception as error:  # as in decode_image
        raise _bad(name, error) from error


def read_levels(path: Path, *, numbers_palette: bool = False) -> Float[np.ndarray, "h w"]:
    """Read one value for each pixel of a mask of any mode, 1 to 16 bits; their range is the file's.

    A picture with transparency that varies is its opacity, as of a cut-out; of colours the largest
    channel counts.

    Args:
        path: The file.
        numbers_palette: Whether entries of a palette are their numbers, and not their colours.

    Raises:
        BadImageError: As `read_image`.
    """
    content = read_bytes(path)
    try:
        with _opened(io.BytesIO(content)) as image:
            return _levels(PIL.ImageOps.exif_transpose(image), numbers_palette).astype(np.float32)
    except Exception as error:  # as in decode_image
        raise _bad(str(path), error) from error


def _levels(image: PIL.Image.Image, numbers_palette: bool) -> np.ndarray:
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range")
    if image.mode in ("1", "L") or image.mode.startswith("I"):
        return np.asarray(image)
    if image.mode == "P" and numbers_palette:
        return np.asarray(image)
    if image.has_transparency_data:
        opacity = np.asarray(image.convert("RGBA"))[..., 3]
        if opacity.min() < opacity.max():
            return opacity
    return np.asarray(np.asarray(image.convert("RGB")).max(2))


def to_rgb(image: PIL.Image.Image) -> UInt8[np.ndarray, "h w 3"]:
    """Convert an image to uint8 RGB: transparent pixels on white, 16 bits scaled to 8.

    Raises:
        ValueError: If the range of its values is unknown: floats, or integers beyond 16 bits.
    """
    _check_range(image)
    if image.mode.startswith("I"):
        return _from_16_bit(np.asarray(image))
    if image.has_transparency_data:
        # PIL converts premultiplied grey (La) to LA only.
        straight = image.convert("LA" if image.mode == "La" else "RGBA").convert("RGBA")
        white = PIL.Image.new("RGBA", straight.size, "white")
        image = PIL.Image.alpha_composite(white, straight)
    return np.array(image.convert("RGB"))


def _check_range(image: PIL.Image.Image) -> None:
    # The only format whose mode I is 32 bits wide: of a PGM, Pillow scales the values to 16.
    if image.mode == "F" or (image.mode == "I" and image.format == "TIFF"):
        kind = "floating-point" if image.mode == "F" else "32-bit"
        raise ValueError(f"{kind} pixels have no known range; convert the file to 8 or 16 bits")


def _is_plain_jpeg(image: PIL.Image.Image, content: bytes) -> bool:
    is_upright = image.getexif().get(PIL.ExifTags.Base.Orientation, 1) == 1
    is_whole = content.endswith(END_OF_JPEG)  # OpenCV would fill in what is cut off
    return image.format == "JPEG" and image.mode == "RGB" and is_upright and is_whole


def _decode_jpeg(content: bytes) -> UInt8[np.ndarray, "h w 3"]:
    # The same pixels as Pillow's in two thirds of the time: benchmarks/data/decoders.py.
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    if pixels is None:
        raise ValueError("its JPEG data is damaged")
    return np.asarray(pixels, np.uint8)


def _from_16_bit(pixels: np.ndarray) -> UInt8[np.ndarray, "h w 3"]:
    if pixels.min() < 0 or pixels.max() > 65535:
        raise ValueError(
            f"grey values must lie in [0, 65535], got {pixels.min()} to {pixels.max()}; "
            "convert the file to 8 or 16 bits"
        )
    grey = ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def _opened(file: BinaryIO) -> PIL.Image.Image:
    image = PIL.Image.open(file, formats=tuple(_SUFFIXES))
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ValueError(f"it has {width} x {height} pixels, more than the limit of {MAX_PIXELS}")
    return image


def _bad(name: str, error: Exception) -> BadImageError:
    if isinstance(error, PIL.UnidentifiedImageError):
        reason = "it is not an image of a known format"
    elif isinstance(error, OSError) and error.strerror:
        reason = error.strerror
    else:
        reason = str(error) or type(error).__name__
    return BadImageError(f"image {escaped(name)} cannot be read: {' '.join(reason.split())}")
