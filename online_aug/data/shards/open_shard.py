"""A shard that is open for reading: bytes at a place, refused if the file has changed."""

import os
from collections import OrderedDict
from pathlib import Path
from threading import Lock

from online_aug.data.shards.content import shown
from online_aug.documents import open_regular
from online_aug.errors import UserError, one_line
from online_aug.file_digests.index import State

_MOST_OPEN = 64


class OpenShard:
    """One open file; it is closed when nobody holds it any more."""

    def __init__(self, path: Path, state: State) -> None:
        """Open it.

        Args:
            path: The file.
            state: Size, time of the last change in ns, and inode when it was indexed.

        Raises:
            UserError: If it cannot be read, or has changed since.
        """
        self._path, self._state = path, state
        self._file = None
        try:
            self._file = open_regular(path)
        except OSError as error:
            raise _unreadable(path, error) from error
        self._refuse_changed()

    def __del__(self) -> None:
        if self._file is not None:
            self._file.close()

    def read(self, start: int, size: int) -> bytes:
        """Return bytes at a place.

        Raises:
            UserError: If they cannot be read, or the file has changed since it was indexed.
        """
        assert self._file is not None  # else it was not made
        try:
            content = os.pread(self._file.fileno(), size, start)
        except OSError as error:
            raise _unreadable(self._path, error) from error
        self._refuse_changed()  # after reading: what was read is what was indexed
        return content

    def _refuse_changed(self) -> None:
        assert self._file is not None
        found = os.fstat(self._file.fileno())
        if (found.st_size, found.st_mtime_ns, found.st_ino) != self._state:
            raise UserError(
                f"{shown(self._path)} must stay as it was when it was indexed, it has changed: "
                "start again, and it is indexed anew"
            )


class OpenShards:
    """Shards that are open in this process, the latest ones; threads may share it.

    Reading at a place needs no position, so a forked process may use what its parent has opened.
    """

    def __init__(self) -> None:
        """Open nothing yet."""
        self._open: OrderedDict[Path, OpenShard] = OrderedDict()
        self._lock = Lock()

    def of(self, path: Path, state: State) -> OpenShard:
        """Return a shard, opened first if it is not.

        Raises:
            UserError: As `OpenShard`.
        """
        with self._lock:
            shard = self._open.pop(path, None) or OpenShard(path, state)
            self._open[path] = shard
            if len(self._open) > _MOST_OPEN:
                self._open.popitem(last=False)
            return shard


def _unreadable(path: Path, error: OSError) -> UserError:
    return UserError(f"{shown(path)} cannot be read: {error.strerror or one_line(error)}")
