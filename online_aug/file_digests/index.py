"""The index of a folder's files: states, checks and digests, as one file that is replaced whole.

The first line is a JSON object with the version, the folder, the number of files and the digest of
the rest: the names, each ended by a zero, and an array of `ENTRY`.
"""

import errno
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from jaxtyping import Bool, Shaped

from cache import content_digest
from online_aug.documents import open_regular

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
_PART, _THREADS = 256, 8
_TRIES = 3
_NAMES = {"version": int, "root": str, "files": int, "digest": str}


@dataclass(frozen=True, eq=False)
class Index:
    """Content of an index."""

    root: Path
    files: tuple[str, ...]
    """Paths in `root`."""
    entries: Entries

    def beside(self, other: "Index | None") -> "Index":
        """Return this index with the files of another that this one lacks."""
        if other is None or other.files == self.files:
            return self
        own = set(self.files)
        more = [place for place, name in enumerate(other.files) if name not in own]
        return Index(
            self.root,
            (*self.files, *(other.files[place] for place in more)),
            np.concatenate([self.entries, other.entries[more]]),
        )

    def packed(self) -> bytes:
        """Return the content of the index's file."""
        rest = b"".join(os.fsencode(name) + b"\0" for name in self.files) + self.entries.tobytes()
        head = {
            "version": _VERSION,
            "root": os.fsencode(self.root.resolve()).hex(),
            "files": len(self.files),
            "digest": content_digest(rest),
        }
        return json.dumps(head).encode() + b"\n" + rest

    def of(self, files: Sequence[str]) -> Entries:
        """Return the entries of these files, empty for those that are not in the index."""
        if tuple(files) == self.files:
            return self.entries
        places = {name: place for place, name in enumerate(self.files)}
        chosen = np.array([places.get(name, -1) for name in files], np.int64)
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
        *names, end = rest[: len(rest) - size].split(b"\0")
        if end or len(names) != head["files"]:
            return None
        entries = np.frombuffer(rest, ENTRY, head["files"], len(rest) - size)
        root = Path(os.fsdecode(bytes.fromhex(head["root"])))
        return Index(root, tuple(map(os.fsdecode, names)), entries)
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


def states_of(root: Path, files: Sequence[str]) -> Entries:
    """Look at files in parallel; a missing one has no inode."""
    entries = np.zeros(len(files), ENTRY)
    folder = str(root)

    def look(places: Sequence[int]) -> list[State]:
        return [_state_at(os.path.join(folder, files[place])) for place in places]  # noqa: PTH118

    for places, states in in_parts(look, range(len(files))):
        for name, column in zip(
            ("size", "mtime_ns", "inode"), zip(*states, strict=True), strict=True
        ):
            entries[name][places] = column
    return entries


def digest_of(path: str, state: State) -> tuple[State, bytes]:
    """Read a file; return its state while it was read and the digest of its content.

    Args:
        path: The file.
        state: Its state when it was looked at.

    Raises:
        OSError: If it cannot be read, or changes whenever it is read.
    """
    for _ in range(_TRIES):
        with open_regular(Path(path)) as file:
            content = file.read()
            now = _state(os.fstat(file.fileno()))
        if now == state and len(content) == now[0]:
            return state, bytes.fromhex(content_digest(content))
        state = now
    raise OSError(errno.EBUSY, "it changes while it is read", path)


class PartWork(Protocol[Result]):
    """Work on the items of a part, in a thread."""

    def __call__(self, part: Sequence[int], /) -> Result:
        """Return the result of a part."""


def in_parts(
    work: PartWork[Result], items: Sequence[int]
) -> Iterator[tuple[Sequence[int], Result]]:
    """Work on parts of the items in threads; yield each part with its result, in order."""
    size = max(1, min(_PART, len(items) // (2 * _THREADS)))
    parts = [items[at : at + size] for at in range(0, len(items), size)]
    with ThreadPoolExecutor(_THREADS) as pool:
        yield from zip(parts, pool.map(work, parts), strict=True)


def _state_at(path: str) -> State:
    try:
        return _state(os.stat(path))  # noqa: PTH116 - faster, for millions
    except OSError:
        return 0, 0, 0  # reading it says why


def _state(found: os.stat_result) -> State:
    return found.st_size, found.st_mtime_ns, found.st_ino
