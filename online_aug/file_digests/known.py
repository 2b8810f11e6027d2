"""Digests of the files of a folder, kept beside a cache so that only new files are read.

A file is known again by its size, time of change and inode. All processes and runs share an index;
it is replaced as a whole, under a lock, and a writer first takes over what others have found.
"""

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from cache import cache_exists, content_digest
from online_aug.file_digests.digests import Digests
from online_aug.file_digests.index import (
    ENTRY,
    Entries,
    Index,
    Reading,
    in_parts,
    is_same,
    read_index,
    read_whole,
    states_of,
)
from online_aug.file_digests.names import Names
from online_aug.files import alone, write_atomically

FOLDER, SUFFIX = "digests", ".files"
"""Folder of the indexes in the directory of a cache, and how their names end."""
HEADERS, PIXELS = 1, 2
"""Levels of checks: a file's header and end, and all its pixels."""
Progress = Callable[[int, int], object]

_STATE = ["size", "mtime_ns", "inode"]
_SAVED_EVERY_S = 30.0
_log = logging.getLogger(__name__)


class KnownFiles:
    """Digests and checks of files, by their places in a list."""

    def __init__(self, cache: Path, root: Path, files: Names) -> None:
        """Look into nothing yet.

        Args:
            cache: Directory of the cache beside which the index is kept. Nothing is kept before
                there is a cache.
            root: Folder of the files.
            files: Their paths in it.
        """
        self._cache, self._root, self._files = cache, root, files
        self._entries: Entries | None = None
        self._is_new = np.zeros(len(files), bool)

    def __getstate__(self) -> dict[str, Any]:
        return vars(KnownFiles(self._cache, self._root, self._files))

    @property
    def path(self) -> Path:
        """The file of the index."""
        name = content_digest(os.fsencode(self._root.resolve()))
        return self._cache / FOLDER / f"{name}{SUFFIX}"

    def unchecked(self, level: int) -> Int[np.ndarray, " m"]:
        """Return the files that have not passed a check of this level since they changed."""
        return np.flatnonzero(self._known["checked"] < level)

    def note_checked(self, places: Int[np.ndarray, " m"], level: int) -> None:
        """Note that files named by `unchecked` have passed a check."""
        checked = self._known["checked"]
        checked[places] = np.maximum(checked[places], level)
        self._is_new[places] = True

    def digests(
        self, places: Sequence[int] | Int[np.ndarray, " m"], progress: Progress | None = None
    ) -> Digests:
        """Return the digests of files; only those are read that are not known.

        Args:
            places: Of the files in the list.
            progress: Is told how many files are read and how many are to be.

        Raises:
            OSError: If a file cannot be read, or changes whenever it is read.
        """
        chosen = np.asarray(places, np.int64)
        if errors := self.read(chosen, progress):
            raise next(iter(errors.values()))
        return Digests(self._known["digest"][chosen].view(np.uint8).reshape(-1, 16))

    def read(
        self, places: Int[np.ndarray, " m"], progress: Progress | None = None
    ) -> dict[int, OSError]:
        """Read the files whose digests are not known; return the errors of those that cannot be.

        A file that is surely a whole image has passed the check of headers with it.

        Args:
            places: Of the files in the list.
            progress: Is told how many files are read and how many are to be.
        """
        reads_all = len(places) == len(self._files)
        if not self._is_first(reads_all) and self._known["has_digest"][places].all():
            return {}
        with self._alone(reads_all):  # others who want the same digests find them afterwards
            missing = np.unique(places[~self._known["has_digest"][places]])
            errors = self._read(missing, progress)
            self._write()
        return errors

    def save(self) -> None:
        """Keep what this process has found, if there is a cache."""
        if self._is_new.any():
            with self._alone():
                self._write()

    @property
    def _known(self) -> Entries:
        if self._entries is None:
            begun_ns = time.time_ns()  # a change after it counts as one that may not be seen
            self._entries = states_of(self._root, self._files)
            self._entries["read_ns"] = begun_ns
            self._take_over(self._entries)
        return self._entries

    def _take_over(self, entries: Entries) -> None:
        """Take from the index what it knows of files that have not changed since."""
        index = read_index(self.path)
        if index is None:
            return
        kept = index.of(self._files)
        same = is_same(entries, kept)
        better = same & ~self._is_new
        entries[better] = kept[better]
        mine = same & self._is_new
        entries["checked"][mine] = np.maximum(entries["checked"][mine], kept["checked"][mine])
        entries["read_ns"][mine] = np.minimum(entries["read_ns"][mine], kept["read_ns"][mine])
        lacking = mine & ~entries["has_digest"] & kept["has_digest"]
        for name in ("digest", "has_digest"):
            entries[name][lacking] = kept[name][lacking]

    def _read(self, places: Int[np.ndarray, " m"], progress: Progress | None) -> dict[int, OSError]:
        folder = str(self._root)

        def read(part: Int[np.ndarray, " m"]) -> list[Reading | OSError]:
            paths = [os.path.join(folder, name) for name in self._files[part]]  # noqa: PTH118
            return list(map(_tried, paths))

        done, saved_s, errors = 0, time.monotonic(), dict[int, OSError]()
        for part, found in in_parts(read, places):
            pairs = list(zip(part.tolist(), found, strict=True))
            errors |= {place: each for place, each in pairs if isinstance(each, OSError)}
            self._note({place: each for place, each in pairs if isinstance(each, Reading)})
            done += len(part)
            if progress:
                progress(done, len(places))
            if time.monotonic() - saved_s > _SAVED_EVERY_S:
                self._write()
                saved_s = time.monotonic()
        return errors

    def _note(self, found: Mapping[int, Reading]) -> None:
        entries, places = self._known, list(found)
        states = entries[_STATE][places].tolist()
        for (place, each), state in zip(found.items(), states, strict=True):
            if each.state != state:
                entries[place] = (*each.state, entries[place]["read_ns"], 0, False, bytes(16))
        entries["digest"][places] = np.frombuffer(b"".join(r.digest for r in found.values()), "V16")
        entries["has_digest"][places] = True
        plain = np.array([each.is_plain for each in found.values()], np.uint8)
        entries["checked"][places] = np.maximum(entries["checked"][places], plain * HEADERS)
        self._is_new[places] = True

    @property
    def _is_kept(self) -> bool:
        folder = self.path.parent
        place = folder if folder.exists() else self._cache
        return cache_exists(self._cache) and os.access(place, os.W_OK)

    def _is_first(self, reads_all: bool) -> bool:
        """Whether nothing is known and all is read, which tells the states of the files too."""
        return reads_all and self._entries is None and read_index(self.path) is None

    @contextmanager
    def _alone(self, reads_all: bool = False) -> Iterator[None]:
        """Keep other processes from this index, and take over what they have found."""
        with alone(self.path.with_suffix(".lock")) if self._is_kept else nullcontext():
            if self._is_first(reads_all):
                self._entries = np.zeros(len(self._files), ENTRY)
                self._entries["read_ns"] = time.time_ns()
            elif self._is_kept:
                self._take_over(self._known)
            yield

    def _write(self) -> None:
        if not self._is_kept or not self._is_new.any():
            return
        index = Index(self._root, self._files, self._known).beside(read_index(self.path))
        try:
            write_atomically(self.path, index.packed())
        except OSError as error:
            _log.warning("what is known of %s is not kept: %s", self._root, error)
        else:
            self._is_new[:] = False


@dataclass(frozen=True)
class Verified:
    """Result of reading all files of an index again."""

    root: Path
    known: int
    """Files whose digest the index has."""
    changed: int
    """Files that have gone, or changed since or shortly before; a run reads them again."""
    wrong: tuple[str, ...]
    """Files with another content than the index says, though size, time and inode are the same."""


def indexes(cache: Path) -> list[Path]:
    """Return the indexes kept beside a cache."""
    return sorted((cache / FOLDER).glob(f"*{SUFFIX}"))


def verify(path: Path, progress: Progress | None = None) -> Verified | None:
    """Read all files of an index again and take out what is wrong.

    Args:
        path: The index.
        progress: Is told how many files are read and how many are to be.

    Returns:
        None if it is broken or of another version: a run writes it anew.

    Raises:
        OSError: If it cannot be written.
    """
    with alone(path.with_suffix(".lock")):
        index = read_index(path)
        if index is None:
            return None
        states = states_of(index.root, index.files)
        known = index.entries["has_digest"]
        same = known & is_same(states, index.entries)
        wrong, done, places = [], 0, same.nonzero()[0]

        def read(part: Int[np.ndarray, " m"]) -> list[bytes | None]:
            paths = [str(index.root / name) for name in index.files[part]]
            return [
                each.digest if isinstance(each, Reading) else None for each in map(_tried, paths)
            ]

        for part, found in in_parts(read, places):
            stored = [digest.tobytes() for digest in index.entries["digest"][part]]
            pairs = zip(part.tolist(), found, stored, strict=True)
            wrong += [place for place, digest, told in pairs if digest not in (None, told)]
            done += len(part)
            if progress:
                progress(done, len(places))
        if wrong:
            entries = index.entries.copy()
            entries[wrong] = np.zeros((), ENTRY)
            write_atomically(path, Index(index.root, index.files, entries).packed())
    files = tuple(index.files[place] for place in wrong)
    return Verified(index.root, int(known.sum()), int(known.sum() - same.sum()), files)


def _tried(path: str) -> Reading | OSError:
    try:
        return read_whole(path)
    except OSError as error:
        return error
