"""Tar files, uncompressed, a member at a time.

The standard library's reader keeps every member in a list and reads as much as a header asks for.
"""

import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedReader
from typing import BinaryIO

from cache.errors import CacheError

_BLOCK = tarfile.BLOCKSIZE
_MAX_NAME_BYTES = 2**16
_PAX_PATH = re.compile(rb"\d+ path=([^\n]*)\n")
_ENCODING = ("utf-8", "surrogateescape")


@dataclass(frozen=True)
class Member:
    """One file of a tar, its content still there."""

    name: str
    is_plain: bool
    """No link, folder or device."""
    size: int
    _file: BufferedReader
    _start: int

    def read(self, limit: int) -> bytes:
        """The content.

        Raises:
            CacheError: If it is no plain file, larger than `limit` or cut short.
        """
        if not self.is_plain:
            raise CacheError("member must be a plain file, not a link or device")
        if self.size > limit:
            raise CacheError(f"member must be at most {limit} bytes, got {self.size}")
        self._file.seek(self._start)
        content = self._file.read(self.size)
        if len(content) != self.size:
            raise CacheError("member must be whole, got the start of one")
        return content


def write_member(file: BinaryIO, name: str, content: bytes) -> None:
    """Append a plain file to a tar."""
    header = tarfile.TarInfo(name)
    header.size = len(content)
    file.write(header.tobuf(tarfile.USTAR_FORMAT))
    file.write(content)
    file.write(bytes(-len(content) % _BLOCK))


def write_end(file: BinaryIO) -> None:
    """Mark the end of a tar."""
    file.write(bytes(2 * _BLOCK))


def read_members(file: BufferedReader) -> Iterator[Member]:
    """The members of a tar but for its folders, in order.

    Raises:
        CacheError: If it is no tar, or cut off.
    """
    start, long_name = 0, None
    while (header := _header(file, start)) is not None:
        start += _BLOCK
        content = Member(header.name, True, header.size, file, start)
        match header.type:
            case tarfile.XHDTYPE:
                found = _PAX_PATH.search(content.read(_MAX_NAME_BYTES))
                long_name = found[1].decode(*_ENCODING) if found else long_name
            case tarfile.GNUTYPE_LONGNAME:
                long_name = content.read(_MAX_NAME_BYTES).rstrip(b"\0").decode(*_ENCODING)
            case tarfile.XGLTYPE | tarfile.GNUTYPE_LONGLINK:
                pass
            case tarfile.DIRTYPE:
                long_name = None
            case kind:
                is_plain = kind in (tarfile.REGTYPE, tarfile.AREGTYPE)
                yield Member(long_name or header.name, is_plain, header.size, file, start)
                long_name = None
        start += -(-header.size // _BLOCK) * _BLOCK


def _header(file: BufferedReader, start: int) -> tarfile.TarInfo | None:
    file.seek(start)
    block = file.read(_BLOCK)
    if start and not block.strip(b"\0"):
        return None
    try:
        header = tarfile.TarInfo.frombuf(block, *_ENCODING)
    except (tarfile.HeaderError, ValueError) as error:
        raise CacheError(f"shard must be a whole tar file: {error}") from error
    if header.size < 0:
        raise CacheError(f"shard must be a whole tar file: size {header.size}")
    return header
