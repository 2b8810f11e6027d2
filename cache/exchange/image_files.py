"""Image files: records as files and back, and files from elsewhere opened with care.

Nothing that a foreign folder or table names is read outside of that folder, through a link, or
beyond a fixed size.
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
from cache.record import Record, encode_classes

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp"})
MAX_TEXT_BYTES = 2**22
"""Largest size of one line of a table or one JSON file."""

_CODECS = {"PNG": ("png",), "JPEG": ("jpeg",), "WEBP": ("webp_lossless", "webp_lossy")}
"""Codecs whose bytes are files, by Pillow's name of the format."""
_SUFFIXES = {"png": ".png", "jpeg": ".jpg", "webp_lossless": ".webp", "webp_lossy": ".webp"}


@dataclass(frozen=True, kw_only=True)
class Description:
    """A record without its image."""

    request: Mapping[str, Scalar]
    created: float
    """Unix time, s."""
    scores: Mapping[str, float] = field(default_factory=dict)
    classes: Mapping[str, str] = field(default_factory=dict)
    """Names of data set and classes, as in `Entry.classes`."""


def as_file(record: Record) -> tuple[str, bytes]:
    """Return suffix and content of an image file: the record's own bytes, PNG if it is raw."""
    if suffix := _SUFFIXES.get(record.codec.name):
        return suffix, record.image_bytes
    return ".png", as_png(record)


def as_png(record: Record) -> bytes:
    """Return the record's image as a PNG file.

    Raises:
        CorruptRecordError: If it cannot be decoded.
    """
    if record.codec.name == "png":
        return record.image_bytes
    return CODECS["png"].encode(record.image)


def from_file(content: bytes, description: Description) -> Record:
    """Make a record of a PNG, JPEG or WebP file.

    A still RGB image is kept byte for byte; any other is converted to RGB and kept as PNG.

    Raises:
        CacheError: If `content` is not a whole image of these formats, or is too large.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a decoder's: what counts is whether it decodes
            codec, kept, (width, height) = _as_codec(content)
    except CacheError:
        raise
    except Exception as error:  # Pillow raises a dozen types, by the part that gave up
        reason = str(error).splitlines()[:1] or [type(error).__name__]
        raise CorruptRecordError(f"image must decode: {reason[0][:200]}") from error
    request = canonical_bytes(description.request)
    return Record(
        key=digest_of(request),
        position=0,  # assigned when the record is put
        request_bytes=request,
        scores_bytes=canonical_bytes(description.scores),
        classes_bytes=encode_classes(description.classes),
        created=description.created,
        codec=codec,
        height=height,
        width=width,
        image_bytes=kept,
    )


def pixels_of(content: bytes) -> Pixels:
    """Decode a PNG, JPEG or WebP file to RGB.

    Raises:
        CacheError: If `content` is not a whole image of these formats, or is too large.
    """
    encoded = from_file(content, Description(request={}, created=0.0))
    return encoded.codec.decode(encoded.image_bytes, encoded.height, encoded.width)


def read_inside(root: Path, name: str) -> bytes:
    """Read the file that `name`, a relative path with slashes, gives within `root`.

    Raises:
        CacheError: If the name leads out of `root` or through a symbolic link, or the file is
            missing, not a plain one, or too large.
    """
    with open_regular(path_inside(root, name)) as file:
        return read_bounded(file, MAX_IMAGE_BYTES)


def path_inside(root: Path, name: str) -> Path:
    """Return the path of `name` within `root`.

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
    """Open a plain file for reading, never a link, device or pipe.

    Raises:
        CacheError: If it is anything else or cannot be read.
    """
    try:
        # O_NONBLOCK: opening a pipe would wait for somebody to write to it.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "no such name"
        raise CacheError(f"file must be a plain one that can be read: {reason}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise CacheError("file must be a plain one, not a folder, device or pipe")
    return os.fdopen(descriptor, "rb")


def read_bounded(file: BufferedReader, limit: int) -> bytes:
    """Read the rest of `file`.

    Raises:
        CacheError: If that is more than `limit` bytes.
    """
    content = file.read(limit + 1)
    if len(content) > limit:
        raise CacheError(f"file must be at most {limit} bytes")
    return content


def bounded_lines(file: BufferedReader) -> Iterator[str]:
    """Yield the lines of a UTF-8 text file.

    Raises:
        CacheError: If a line is too long to hold or not UTF-8.
    """
    while line := file.readline(MAX_TEXT_BYTES):
        if len(line) == MAX_TEXT_BYTES:
            raise CacheError(f"line must be shorter than {MAX_TEXT_BYTES} bytes")
        try:
            yield line.decode()
        except UnicodeDecodeError as error:
            raise CacheError("text must be UTF-8") from error


def walk_images(root: Path) -> Iterator[str]:
    """Yield the relative paths of files with an image's suffix under `root`, sorted by folder.

    Hidden files and folders are passed over. Links to files are yielded, for `read_inside` to
    refuse with a reason; links to folders are not followed.
    """
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        inside = Path(folder).relative_to(root)
        for name in sorted(files):
            if Path(name).suffix.lower() in IMAGE_SUFFIXES and not name.startswith("."):
                yield (inside / name).as_posix()


def find_sources(root: Path, digests: Iterable[str]) -> dict[str, Path]:
    """Return the image files under `root` that have one of the digests, by digest.

    Raises:
        CacheError: If `root` is not a folder.
    """
    if not root.is_dir():
        raise CacheError(f"sources must be a folder, got {root}")
    wanted = set(digests)
    found: dict[str, Path] = {}
    for name in walk_images(root):
        if not wanted:
            break
        digest = _file_digest(root / name)
        if digest in wanted:
            wanted.remove(digest)
            found[digest] = root / name
    return found


def _as_codec(content: bytes) -> tuple[Codec, bytes, tuple[int, int]]:
    sides = webp_sides(content)
    if sides is not None:  # Pillow allocates a WebP's pixels when it opens the file
        _check_sides(*sides)
    with PIL.Image.open(BytesIO(content), formats=tuple(_CODECS)) as image:
        width, height = image.size
        _check_sides(width, height)
        is_plain = image.mode == "RGB" and getattr(image, "n_frames", 1) == 1
        for name in _CODECS.get(image.format or "", ()) if is_plain else ():
            if name in CODECS and _decodes(CODECS[name], content, image.size):
                return CODECS[name], content, image.size
        pixels = np.asarray(image.convert("RGB"))
    return CODECS["png"], CODECS["png"].encode(pixels), (width, height)


def _decodes(codec: Codec, content: bytes, size: tuple[int, int]) -> bool:
    try:
        codec.decode(content, size[1], size[0])
    except CorruptRecordError:
        return False
    return True


def _check_sides(width: int, height: int) -> None:
    # The header has them, so this comes before a pixel is unpacked.
    if not 0 < min(width, height) <= max(width, height) <= MAX_SIDE_PX:
        raise CorruptRecordError(
            f"image sides must be 1 to {MAX_SIDE_PX} px, got {width} x {height}"
        )


def _file_digest(path: Path) -> str | None:
    # In the user's own folder links are followed, as a data loader does.
    try:
        with open_regular(Path(os.path.realpath(path))) as file:
            return content_digest(read_bounded(file, MAX_IMAGE_BYTES))
    except CacheError:
        return None
