"""From a directory to LMDB's handle and the tables of a cache, or one line why not."""

from pathlib import Path

import lmdb

from cache.errors import CacheError
from cache.filesystems import check_local
from cache.handle import open_handle, probe
from cache.location import (
    LOCK,
    check_not_compacting,
    check_readable,
    identity,
    is_started,
    make_writable,
)
from cache.schema import create_tables, open_tables
from cache.soundness import check_sound, note_sound
from cache.tables import Tables

_TRIES = 3


def open_cache(path: Path, *, writable: bool, sync: bool) -> tuple[lmdb.Environment, Tables]:
    """Handle and tables of the cache at `path`, made or migrated where it may be written.

    Raises:
        CacheError: If the path is no cache and cannot become one, or is being compacted.
    """
    check_local(path)
    if writable:
        make_writable(path)
    else:
        check_readable(path)
    is_to_note = check_sound(path)
    if is_started(path) and not (path / LOCK).exists():
        probe(path)
    handle = _open_current(path, writable, sync)
    try:
        handle.reader_check()
        tables = (create_tables if writable else open_tables)(handle, path)
    except BaseException:
        handle.close()
        raise
    if is_to_note:
        note_sound(path)
    return handle, tables


def _open_current(path: Path, writable: bool, sync: bool) -> lmdb.Environment:
    """LMDB on the file that is there now, not on one that `compact` has just replaced."""
    for _ in range(_TRIES):
        check_not_compacting(path)
        before = identity(path)
        handle = open_handle(path, readonly=not writable, sync=sync)
        if before in (None, identity(path)):
            return handle
        handle.close()
    raise CacheError(f"cache {path} was replaced while it was opened; try again")
