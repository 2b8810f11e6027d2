"""Saliency maps beside the images: one for each version of the table and source image."""

import hashlib
from collections.abc import Mapping

from cache.errors import CacheError, CorruptRecordError
from cache.facts import source_id
from cache.tables import Tables, Transaction, add_number, put_number

MAX_MAP_BYTES = 2**24
"""Of one map."""

_VERSION_BYTES = 16
_CHECKSUM_BYTES = 16
_VERSION_PERSON = b"online-aug ver 1"
_PERSON = b"online-aug sal 1"


def put(txn: Transaction, tables: Tables, version: str, maps: Mapping[str, bytes]) -> None:
    """Write maps by source digest, in place of what was there."""
    start = version_id(version)
    for source, data in maps.items():
        key = start + source_id(source)
        old = txn.get(key, db=tables.saliency)
        value = _checksum(key, data) + data
        txn.put(key, value, db=tables.saliency)
        add_number(txn, tables, "saliency_bytes", len(value) - (0 if old is None else len(old)))


def adopt(txn: Transaction, tables: Tables, key: bytes, value: bytes) -> bool:
    """Write an encoded map of another cache, unless there is one in its place; whether it was.

    Raises:
        CorruptRecordError: If it is not what was written.
    """
    check(key, value)
    is_new = txn.put(key, value, overwrite=False, db=tables.saliency)
    if is_new:
        add_number(txn, tables, "saliency_bytes", len(value))
    return is_new


def get(txn: Transaction, tables: Tables, version: str, source: str) -> bytes | None:
    """The map of a source, None if there is none.

    Raises:
        CorruptRecordError: If its bytes are not what was written.
    """
    key = version_id(version) + source_id(source)
    value = txn.get(key, db=tables.saliency)
    return None if value is None else check(key, value)


def drop(txn: Transaction, tables: Tables, version: str) -> int:
    """Take out all maps of a version; how many."""
    start, count, size = version_id(version), 0, 0
    with txn.cursor(tables.saliency) as cursor:
        while cursor.set_range(start) and cursor.key().startswith(start):
            size += len(cursor.value())
            count += 1
            cursor.delete()
    add_number(txn, tables, "saliency_bytes", -size)
    return count


def check(key: bytes, value: bytes) -> bytes:
    """The map in `value`.

    Raises:
        CorruptRecordError: If a byte of it is not what was written.
    """
    data = value[_CHECKSUM_BYTES:]
    if value[:_CHECKSUM_BYTES] != _checksum(key, data):
        raise CorruptRecordError(
            f"saliency map {key.hex()} is corrupt: its checksum does not match"
        )
    return data


def unreadable(txn: Transaction, tables: Tables) -> list[tuple[str, bytes]]:
    """Maps that cannot be read: what is wrong, and under which key."""
    found = []
    with txn.cursor(tables.saliency) as cursor:
        for key, value in cursor:
            try:
                check(key, value)
            except CorruptRecordError as error:
                found.append((str(error), key))
    return found


def drop_unreadable(txn: Transaction, tables: Tables) -> None:
    """Take out maps that cannot be read, and count the bytes of the others anew."""
    for _, key in unreadable(txn, tables):
        txn.delete(key, db=tables.saliency)
    with txn.cursor(tables.saliency) as cursor:
        put_number(txn, tables, "saliency_bytes", sum(map(len, cursor.iternext(keys=False))))


def check_maps(maps: Mapping[str, bytes]) -> None:
    """Refuse what is too large to be kept.

    Raises:
        CacheError: If one of `maps` is.
    """
    for source, data in maps.items():
        if len(data) > MAX_MAP_BYTES:
            raise CacheError(
                f"saliency map must be at most {MAX_MAP_BYTES} bytes, got {len(data)} for {source}"
            )


def version_id(version: str) -> bytes:
    """The digest that the keys of a version start with."""
    text = version.encode(errors="surrogatepass")
    return hashlib.blake2b(text, digest_size=_VERSION_BYTES, person=_VERSION_PERSON).digest()


def _checksum(key: bytes, data: bytes) -> bytes:
    digest = hashlib.blake2b(data, digest_size=_CHECKSUM_BYTES, person=_PERSON)
    digest.update(key)
    return digest.digest()
