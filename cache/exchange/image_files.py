"""Image files from records and records from image files, their bytes kept where they can be.

Reading folders from elsewhere: never outside of them, never through a link, never too much.

Source images by the digest of their file, found in a folder.
"""

import os
import stat
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from io import BufferedReader, BytesIO
from pathlib import Path, PurePosixPath

import numpy as np
import PIL.Image

from cache.codecs import CODECS, MAX_IMAGE_BYTES, MAX_SIDE_PX, Codec, Pixels, webp_sides
from cache.errors import CacheError, CorruptRecordError
from cache.keys import Scalar, canonical_bytes, content_digest, digest_of
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


IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp"})
MAX_TEXT_BYTES = 2**22
"""Of one line of a table or one JSON file."""


def read_inside(root: Path, name: str) -> bytes:
    """The content of the file that `name`, a relative path with slashes, gives within `root`.

    Raises:
        CacheError: If the name leads out of `root` or through a symbolic link, or the file is none
            or too large.
    """
    with open_regular(path_inside(root, name)) as file:
        return read_bounded(file, MAX_IMAGE_BYTES)


def path_inside(root: Path, name: str) -> Path:
    """The path of `name` within `root`.

    Raises:
        CacheError: If the name leads out of `root` or through a symbolic link.
    """
    parts = PurePosixPath(name).parts
    if not parts or parts[0] == "/" or ".." in parts or "\0" in name:
        raise CacheError(f"path must stay inside the folder, got {name[:200]!r}")
    path = root.joinpath(*parts)
    try:
        is_linked = path.resolve() != root.resolve().joinpath(*parts)
    except (OSError, RuntimeError) as error:
        raise CacheError(f"path must be readable, got {name[:200]!r}") from error
    if is_linked:
        raise CacheError("file must not be reached through a symbolic link")
    return path


def open_regular(path: Path) -> BufferedReader:
    """A file opened for reading if it is a plain one: no link, device or pipe.

    Raises:
        CacheError: If it is anything else or cannot be read.
    """
    try:
        # Without waiting, should it be a pipe that nobody writes to.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "no such name"
        raise CacheError(f"file must be a plain one that can be read: {reason}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise CacheError("file must be a plain one, not a folder, device or pipe")
    return os.fdopen(descriptor, "rb")


def read_bounded(file: BufferedReader, limit: int) -> bytes:
    """The rest of `file`.

    Raises:
        CacheError: If that is more than `limit` bytes.
    """
    content = file.read(limit + 1)
    if len(content) > limit:
        raise CacheError(f"file must be at most {limit} bytes")
    return content


def walk_images(root: Path) -> Iterator[str]:
    """Images under `root` by suffix, as relative paths, sorted within each folder; no hidden ones.

    Links are named too, for `read_inside` to refuse with a reason, but not followed.
    """
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        inside = Path(folder).relative_to(root)
        for name in sorted(files):
            if Path(name).suffix.lower() in IMAGE_SUFFIXES and not name.startswith("."):
                yield (inside / name).as_posix()


def bounded_lines(file: BufferedReader) -> Iterator[str]:
    """The lines of a text file.

    Raises:
        CacheError: If one is too long to hold or not UTF-8.
    """
    while line := file.readline(MAX_TEXT_BYTES):
        if len(line) == MAX_TEXT_BYTES:
            raise CacheError(f"line must be shorter than {MAX_TEXT_BYTES} bytes")
        try:
            yield line.decode()
        except UnicodeDecodeError as error:
            raise CacheError("text must be UTF-8") from error


def find_sources(root: Path, digests: Iterable[str]) -> dict[str, Path]:
    """Files under `root` by their digest, for those of `digests` that are there.

    Raises:
        CacheError: If `root` is no folder.
    """
    if not root.is_dir():
        raise CacheError(f"sources must be a folder, got {root}")
    wanted = set(digests)
    found: dict[str, Path] = {}
    for name in walk_images(root):
        if not wanted:
            break
        digest = _digest(root / name)
        if digest in wanted:
            wanted.remove(digest)
            found[digest] = root / name
    return found


def _digest(path: Path) -> str | None:
    # The user's own folder: links are followed here, as a data loader does.
    try:
        with open_regular(Path(os.path.realpath(path))) as file:
            return content_digest(read_bounded(file, MAX_IMAGE_BYTES))
    except CacheError:
        return None
