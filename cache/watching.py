"""Whether the file that LMDB has mapped is still the one at its path."""

import math
import os
import time
from pathlib import Path

from cache.errors import CacheError
from cache.location import DATA

LOOKED_EVERY_S = 1.0
"""How often the path is asked too, which takes three times as long as the open file."""
READ_AFTER_S = 0.001
"""How long readers do not ask the file: asking takes a quarter of what we add to a `get`."""


class DataFile:
    """The data file of an open environment.

    What LMDB has mapped must be there: a page cut off kills the process that reads it, and records
    written to a removed file are lost.
    """

    def __init__(self, path: Path) -> None:
        """Note the file at `path`, the directory of the cache."""
        self._folder, self._path = path, str(path / DATA)
        self._file = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        self._looked = self._asked = time.monotonic()
        found = os.fstat(self._file)
        self._inode, self._links, self._size = found.st_ino, found.st_nlink, found.st_size

    def check(self, *, write: bool = False) -> None:
        """Refuse to go on with a file that is not what it was; a reader asks a thousand times a s.

        Raises:
            CacheError: If it was removed, replaced or cut short.
        """
        now = time.monotonic()
        if now - self._asked < READ_AFTER_S and not write:
            return
        self._asked = now
        if not self._is_there(now):
            self._asked = -math.inf  # until it is put back every reader asks
            raise CacheError(
                f"cache {self._folder} was removed, replaced or cut short while it was open; "
                "put it back, or close the store to start with what is there now"
            )

    def close(self) -> None:
        """Give the file back; LMDB's locks are on another one and stay."""
        os.close(self._file)

    def _is_there(self, now: float) -> bool:
        found = os.fstat(self._file)
        is_odd = found.st_nlink != self._links or found.st_size < self._size
        if is_odd or now - self._looked >= LOOKED_EVERY_S:
            return self._is_at_path(now)
        self._size = found.st_size
        return True

    def _is_at_path(self, now: float) -> bool:
        try:
            found = os.stat(self._path)  # noqa: PTH116  # a Path takes as long again
        except OSError:
            return False
        if found.st_ino != self._inode or found.st_size < self._size:
            return False
        self._links, self._size, self._looked = found.st_nlink, found.st_size, now
        return True
