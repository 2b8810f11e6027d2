"""Records out of a data file whose pages no longer lead to them, into a new one.

Each record is found by the letters it starts with and vouched for by its own checksum, so neither
LMDB nor any page of it is asked.
"""

import mmap
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

from cache.codec import MAX_IMAGE_BYTES
from cache.errors import CacheError, CorruptRecordError, DamagedCacheError
from cache.exchange.batches import Batches
from cache.location import DATA, check_free
from cache.record import Record, key_in, parse
from cache.record_header import HEADER, MAGIC, Header
from cache.store import Store
from cache.swapping import alone, put_in_place

DAMAGED = "data.mdb.damaged"
"""What the damaged file is called from then on."""
_LARGEST = MAX_IMAGE_BYTES + 2**24
"""Bytes of a record; one that claims more is none."""

Place: TypeAlias = tuple[int, int, int]
"""Position in the log, offset in the file, bytes."""


def salvage(path: Path, damage: DamagedCacheError, tell: Callable[[int, int], None]) -> int:
    """Put a new file with every record that is whole in the place of a damaged one; how many.

    The order of arrival is kept, the damaged file too. Lost is what stood beside the records.
    `tell` is called with how many of how many records are written.

    Raises:
        DamagedCacheError: `damage`, if there is no whole record in the file.
        CacheError: If another process has the cache open, or an earlier damaged file is there.
        CacheFullError: If the disk has no room for the new file.
    """
    if (path / DAMAGED).exists():
        raise CacheError(
            f"{path / DAMAGED} must be moved away before another damaged file takes its place"
        )
    with alone(path), _mapped(path / DATA) as data:
        places = sorted(_places(data))
        if not places:
            raise damage
        check_free(path, sum(size for _, _, size in places))
        with tempfile.TemporaryDirectory(dir=path, prefix=".salvage-") as folder:
            fresh = Path(folder) / DATA
            count = _write(data, places, fresh.parent, tell)
            (path / DATA).rename(path / DAMAGED)
            put_in_place(fresh, path)
    return count


@contextmanager
def _mapped(file: Path) -> Iterator[mmap.mmap]:
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
        yield data


def _places(data: mmap.mmap) -> Iterator[Place]:
    at = data.find(MAGIC)
    while at >= 0:
        record = _record_at(data, at)
        size = 1
        if record is not None:
            found, size = record
            yield found.position, at, size
        at = data.find(MAGIC, at + size)


def _record_at(data: mmap.mmap, at: int) -> tuple[Record, int] | None:
    try:
        size = Header.read(data[at : at + HEADER.size]).end
        if size > _LARGEST:
            return None
        value = data[at : at + size]
        record = parse(key_in(value), value)
        _ = record.request, record.scores
    except CorruptRecordError:
        return None
    return record, size


def _write(
    data: mmap.mmap, places: list[Place], path: Path, tell: Callable[[int, int], None]
) -> int:
    # Synced once, at the end: nobody knows of the file before.
    with Store(path, policy=None, durability="process") as store:
        batches = Batches(store, lambda done: tell(done, len(places)))
        for _, at, size in places:
            value = data[at : at + size]
            batches.add(parse(key_in(value), value))
        batches.flush()
    with (path / DATA).open("rb") as file:
        os.fsync(file.fileno())
    return batches.report.done
