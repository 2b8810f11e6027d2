"""The index of a folder's shards: read once in parallel, kept, shared, and mended by shard.

It is kept beside the shards, or beside the cache if their folder cannot be written. A shard is
known again by its size, time of change and inode, as files are (`online_aug.file_digests`).
"""

import errno
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from cache import cache_exists, content_digest
from online_aug.console import Report, terminal_progress
from online_aug.data.shards.content import IMAGE, Content, Images, ShardFile, shown
from online_aug.data.shards.index_file import IndexFile, Known, packed, read_index
from online_aug.data.shards.readers.arrow import read_arrow
from online_aug.data.shards.readers.parquet import read_parquet
from online_aug.data.shards.readers.tar import read_tar
from online_aug.errors import UserError, one_line
from online_aug.file_digests.index import ENTRY, State, is_same
from online_aug.file_digests.known import FOLDER
from online_aug.files import alone, write_atomically

INDEX_FILE = ".online_aug_shards.index"
"""Name of the index in the folder of the shards."""
READERS: dict[str, Callable[[Path, ShardFile], Content]] = {
    ".tar": read_tar,
    ".parquet": read_parquet,
    ".arrow": read_arrow,
}
"""Functions that read a shard, by the ending of its name."""
SUFFIX = ".shards"
_THREADS, _THREADS_OF_GROUPS = 8, 2
"""Threads that read shards; each holds a row group of a Parquet file in memory."""
_TRIES = 3
_MIB = 2**20
_SAVED_EVERY_S = 30.0
_log = logging.getLogger(__name__)


class ShardIndex:
    """Knowledge of some shards of a folder."""

    def __init__(self, folder: Path, files: Sequence[ShardFile], cache: Path | None) -> None:
        """Look into nothing yet.

        Args:
            folder: Folder of the shards.
            files: The shards in order.
            cache: Directory of the cache beside which the index is kept if the folder cannot be
                written, once there is a cache.
        """
        self._folder, self._files, self._cache = folder, tuple(files), cache
        self._known: dict[str, Known] = {}
        self._is_new = False
        self.images: Images = np.zeros(0, IMAGE)

    def shards(self) -> list[Known]:
        """Return what is known of each shard, in order; those that are new or changed are read.

        Their images are parts of one array, `images`.

        Raises:
            UserError: If a shard cannot be used.
        """
        if not self._known:
            self._take_over(is_first=True)
            if self._missing():
                with self._alone():  # others who want the same shards find them afterwards
                    self._read(self._missing())
                    self._write()
        found = [self._known[file.name] for file in self._files]
        self.images = np.concatenate([known.content.images for known in found])
        parts = np.split(self.images, np.cumsum([len(k.content.images) for k in found])[:-1])
        for known, part in zip(found, parts, strict=True):
            content = replace(known.content, images=part)
            self._known[known.file.name] = replace(known, content=content)
        return [self._known[file.name] for file in self._files]

    def note_changes(self) -> None:
        """Note that checks of images have been changed."""
        self._is_new = True

    def save(self) -> None:
        """Keep what this process has found, if it can be kept."""
        if self._is_new:
            with self._alone():
                self._write()

    @property
    def _place(self) -> Path | None:
        """File in which the index is kept, or None if it cannot be."""
        beside = self._folder / INDEX_FILE
        if os.access(self._folder, os.W_OK | os.X_OK):
            return beside
        if self._cache is None or not cache_exists(self._cache):
            return None
        name = content_digest(os.fsencode(self._folder.resolve()))
        place = self._cache / FOLDER / f"{name}{SUFFIX}"
        nearest = place.parent if place.parent.exists() else self._cache
        return place if os.access(nearest, os.W_OK) else None

    def _take_over(self, *, is_first: bool) -> None:
        """Take from the indexes what they know of shards that have not changed since."""
        for path in {self._folder / INDEX_FILE, self._place}:
            if path is None:
                continue
            found = read_index(path)
            if found is None and is_first and path.exists():
                _log.warning("%s is broken or of another version: it is made anew", shown(path))
            for file in self._files:
                known = found.shards.get(file.name) if found else None
                if known and known.file == file and is_unchanged(self._folder, known):
                    self._known.setdefault(file.name, known)

    def _missing(self) -> list[ShardFile]:
        return [file for file in self._files if file.name not in self._known]

    @contextmanager
    def _alone(self) -> Iterator[None]:
        place = self._place
        if place is None:
            yield
            return
        with alone(place.with_suffix(".lock")):
            self._take_over(is_first=False)
            yield

    def _read(self, files: Sequence[ShardFile]) -> None:
        sizes = {file.name: _state(self._folder / file.name)[0] for file in files}
        saved_s = time.monotonic()
        with terminal_progress("indexing shards (MiB)") as report, _pool(files) as pool:
            futures = [pool.submit(read_shard, self._folder, file) for file in files]
            done = 0
            for future in as_completed(futures):
                known = future.result()
                self._known[known.file.name] = known
                self._is_new = True
                done += sizes[known.file.name]
                _tell(report, done, sum(sizes.values()))
                if time.monotonic() - saved_s > _SAVED_EVERY_S:
                    self._write()
                    saved_s = time.monotonic()

    def _write(self) -> None:
        place = self._place
        if place is None or not self._is_new:
            return
        others = (read_index(place) or IndexFile.empty()).shards
        there = {name: known for name, known in others.items() if (self._folder / name).exists()}
        try:
            place.parent.mkdir(exist_ok=True)
            write_atomically(place, packed(self._folder, there | self._known))
        except OSError as error:
            _log.warning("the index of %s is not kept: %s", shown(self._folder), error)
        else:
            self._is_new = False


def read_shard(folder: Path, file: ShardFile) -> Known:
    """Read a shard whole.

    Raises:
        UserError: If it cannot be read or used, or changes whenever it is read.
    """
    path = folder / file.name
    read = READERS[path.suffix.lower()]
    try:
        for _ in range(_TRIES):
            read_ns, state = time.time_ns(), _state(path)
            content = read(path, file)
            if _state(path) == state:
                return Known(file, state, read_ns, content)
        raise OSError(errno.EBUSY, "it changes while it is read")
    except OSError as error:
        raise UserError(
            f"{shown(path)} cannot be read: {error.strerror or one_line(error)}"
        ) from error


def is_unchanged(folder: Path, known: Known) -> bool:
    """Tell whether a shard is as it was when it was read."""
    then, now = np.zeros(1, ENTRY), np.zeros(1, ENTRY)
    try:
        state = _state(folder / known.file.name)
    except OSError:
        return False
    for name, before, after in zip(("size", "mtime_ns", "inode"), known.state, state, strict=True):
        then[name], now[name] = before, after
    then["read_ns"] = known.read_ns
    return bool(is_same(now, then)[0])


def _state(path: Path) -> State:
    found = path.stat()
    return found.st_size, found.st_mtime_ns, found.st_ino


@contextmanager
def _pool(files: Sequence[ShardFile]) -> Iterator[ThreadPoolExecutor]:
    """Run threads; a failure leaves out those that have not begun."""
    has_groups = any(file.name.lower().endswith(".parquet") for file in files)
    pool = ThreadPoolExecutor(_THREADS_OF_GROUPS if has_groups else _THREADS)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _tell(report: Report, done: int, total: int) -> None:
    report(done // _MIB, max(1, total // _MIB))


def left_out_of(shards: Sequence[Known]) -> Mapping[str, int]:
    """Return how many samples of some shards are not used, by reason."""
    counts: dict[str, int] = {}
    for known in shards:
        for reason, count in (known.content.left_out or {}).items():
            counts[reason] = counts.get(reason, 0) + count
    return counts
