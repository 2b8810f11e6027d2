"""The index of a folder's files: states, checks and digests, as one file that is replaced whole.

The first line is a JSON object with the version, the folder, the number of files and the digest of
the rest: the names, each ended by a zero, and an array of `ENTRY`.
"""

import errno
import json
import os
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
from jaxtyping import Bool, Int, Shaped

from cache import content_digest
from online_aug.documents import open_regular
from online_aug.file_digests.names import Names
from online_aug.file_digests.plain_images import is_plain_image

ENTRY = np.dtype(
    [
        ("size", "<i8"),
        ("mtime_ns", "<i8"),
        ("inode", "<u8"),
        ("read_ns", "<i8"),
        ("checked", "u1"),
        ("has_digest", "?"),
        ("digest", "V16"),
    ]
)
"""A file: its state, when it was looked at, the level of its checks, and its digest if known."""
Entries = Shaped[np.ndarray, " files"]
Same = Bool[np.ndarray, " files"]
State = tuple[int, int, int]
"""Size, time of the last change in ns, and inode."""
Result = TypeVar("Result", covariant=True)

_VERSION = 1
_RACY_NS = 2 * 10**9
"""The coarsest clock of a file system (FAT's), within which a second change leaves no trace."""
_PART, _THREADS = 1024, 8
_TRIES = 3
_NOWHERE = (0, 0, 0)
_NAMES = {"version": int, "root": str, "files": int, "digest": str}


@dataclass(frozen=True, eq=False)
class Index:
    """Content of an index."""

    root: Path
    files: Names
    """Paths in `root`."""
    entries: Entries

    def beside(self, other: "Index | None") -> "Index":
        """Return this index with the files of another that this one lacks."""
        if other is None or other.files == self.files:
            return self
        more = np.flatnonzero(other.files.places_in(self.files) < 0)
        entries = np.concatenate([self.entries, other.entries[more]])
        return Index(self.root, self.files + other.files[more], entries)

    def packed(self) -> bytes:
        """Return the content of the index's file."""
        rest = self.files.content + self.entries.tobytes()
        head = {
            "version": _VERSION,
            "root": os.fsencode(self.root.resolve()).hex(),
            "files": len(self.files),
            "digest": content_digest(rest),
        }
        return json.dumps(head).encode() + b"\n" + rest

    def of(self, files: Names) -> Entries:
        """Return the entries of these files, empty for those that are not in the index."""
        if files == self.files:
            return self.entries
        chosen = files.places_in(self.files)
        found = self.entries[chosen] if len(self.files) else np.zeros(len(files), ENTRY)
        found[chosen < 0] = np.zeros((), ENTRY)
        return found


def read_index(path: Path) -> Index | None:
    """Read an index; None if there is none, or if it is broken or of another version."""
    try:
        with open_regular(path) as file:
            line, rest = file.readline(2**16), file.read()
        head = json.loads(line)
        if {name: type(value) for name, value in head.items()} != _NAMES:
            return None
        if head["version"] != _VERSION or head["digest"] != content_digest(rest):
            return None
        size = head["files"] * ENTRY.itemsize
        names = rest[: len(rest) - size]
        if not 0 <= size <= len(rest) or not names.endswith(b"\0"):
            return None
        files = Names(names)
        entries = np.frombuffer(rest, ENTRY, head["files"], len(rest) - size)
        root = Path(os.fsdecode(bytes.fromhex(head["root"])))
        return Index(root, files, entries) if len(files) == len(entries) else None
    except (OSError, ValueError, AttributeError, RecursionError, MemoryError):
        return None


def is_same(entries: Entries, kept: Entries) -> Same:
    """Tell which files are as they were when `kept` was written.

    One that was changed shortly before it was read does not count: a change within the same tick of
    the file system's clock would not be seen. Nor does one that was changed later than that, as
    when the clock was set back.
    """
    same = kept["mtime_ns"] + _RACY_NS <= kept["read_ns"]
    for name in ("size", "mtime_ns", "inode"):
        same &= entries[name] == kept[name]
    return np.asarray(same & (kept["inode"] > 0))


def states_of(root: Path, files: Names) -> Entries:
    """Look at files in parallel; a missing one has no inode."""
    entries = np.zeros(len(files), ENTRY)

    def look(part: Int[np.ndarray, " m"]) -> list[State]:
        return _states(root, files[part])

    for part, states in in_parts(look, np.arange(len(files))):
        for name, column in zip(
            ("size", "mtime_ns", "inode"), zip(*states, strict=True), strict=True
        ):
            entries[name][part] = column
    return entries


def _states(root: Path, names: Names) -> list[State]:
    found, folder, place = list[State](), -1, None
    try:
        for name in names:
            above, _, own = name.rpartition("/")
            if above != place:  # shorter paths are found faster, and names lie folder by folder
                folder = _opened_folder(root / above, folder)
                place = above
            found.append(_state_at(own, folder) if folder >= 0 else _NOWHERE)
    finally:
        _opened_folder(None, folder)
    return found


def _opened_folder(folder: Path | None, before: int) -> int:
    """Open a folder, if one is given, and close the one that was open; -1 if it cannot be."""
    if before >= 0:
        os.close(before)
    try:
        return -1 if folder is None else os.open(folder, os.O_PATH | os.O_DIRECTORY)
    except OSError:
        return -1  # reading a file in it says why


class Reading(NamedTuple):
    """Result of reading a file."""

    state: State
    """State of the file while it was read."""
    digest: bytes
    """Digest of its content."""
    is_plain: bool
    """Whether it is surely a whole image of an ordinary kind."""


def read_whole(path: str) -> Reading:
    """Read a file until it has stood still meanwhile.

    Raises:
        OSError: If it cannot be read, or changes whenever it is read.
    """
    for _ in range(_TRIES):
        content, before, after = _content(path)
        state = _state(after)
        if before.st_mtime_ns == state[1] and before.st_size == len(content) == state[0]:
            digest = bytes.fromhex(content_digest(content))
            return Reading(state, digest, is_plain_image(content, content))
    raise OSError(errno.EBUSY, "it changes while it is read", path)


def _content(path: str) -> tuple[bytes, os.stat_result, os.stat_result]:
    """Return the content of a regular file, and its state before and afterwards."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        before = os.fstat(descriptor)
        is_regular = stat.S_ISREG(before.st_mode)
        content = more = os.read(descriptor, before.st_size + 1) if is_regular else b""
        while more and len(content) < before.st_size:  # of more than 2 GiB
            more = os.read(descriptor, before.st_size)
            content += more
        after = os.fstat(descriptor)
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from error
    finally:
        os.close(descriptor)
    if not is_regular:
        open_regular(Path(path)).close()  # says what it is
    return content, before, after


class PartWork(Protocol[Result]):
    """Work on the items of a part, in a thread."""

    def __call__(self, part: Int[np.ndarray, " m"], /) -> Result:
        """Return the result of a part."""


def in_parts(
    work: PartWork[Result], items: Int[np.ndarray, " n"]
) -> Iterator[tuple[Int[np.ndarray, " m"], Result]]:
    """Work on parts of the items in threads; yield each part with its result, in order."""
    size = max(1, min(_PART, len(items) // (2 * _THREADS)))
    parts = [items[at : at + size] for at in range(0, len(items), size)]
    with ThreadPoolExecutor(_THREADS) as pool:
        yield from zip(parts, pool.map(work, parts), strict=True)


def _state_at(name: str, folder: int) -> State:
    try:
        return _state(os.stat(name, dir_fd=folder))
    except OSError:
        return _NOWHERE  # reading it says why


def _state(found: os.stat_result) -> State:
    return found.st_size, found.st_mtime_ns, found.st_ino
