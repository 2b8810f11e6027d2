"""A file without free pages in place of one that eviction has emptied."""

import os
from pathlib import Path

import lmdb

from cache.environment import Environment
from cache.handle import open_handle, worded
from cache.location import COMPACT, DATA, check_free
from cache.schema import open_tables
from cache.swapping import alone, put_in_place
from cache.tables import pages_bytes


def compact(environment: Environment) -> int:
    """Replace the file of a cache by a copy without free pages; bytes that the disk got back.

    Raises:
        CacheError: If another process has the cache open.
        CacheFullError: If the disk has no room for the copy.
    """
    environment.open()  # makes or migrates it, or says why that cannot be
    path = environment.path
    with environment.reserved(), alone(path) as copy:
        before = (path / DATA).stat().st_size
        try:
            _copy(path, copy)
        except lmdb.Error as error:
            raise worded(path, error) from error
        put_in_place(path / COMPACT, path)
        return before - (path / DATA).stat().st_size


def _copy(path: Path, copy: int) -> None:
    handle = open_handle(path, readonly=True, lock=False)
    try:
        tables = open_tables(handle, path)
        with handle.begin() as txn:
            needed = pages_bytes(txn, tables)
        check_free(path, needed)
        handle.copyfd(copy, compact=True)
    finally:
        handle.close()
    os.fsync(copy)
