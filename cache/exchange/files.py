"""Reading folders from elsewhere: never outside of them, never through a link, never too much."""

import os
import stat
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path, PurePosixPath

from cache.codec import MAX_IMAGE_BYTES
from cache.errors import CacheError

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
