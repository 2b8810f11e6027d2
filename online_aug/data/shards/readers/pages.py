"""The pages of a column of bytes in a Parquet file: places of its values, without reading them all.

pyarrow reads no less than a row group. A page's header says what it holds and how long it is; the
values of a page stand one after the other, each after its length.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from online_aug.data.shards.content import import_arrow
from online_aug.data.shards.readers.blocks import Block, blocks_of
from online_aug.errors import one_line

_DATA, _DICTIONARY, _DATA_2 = 0, 2, 3
"""Kinds of pages."""
_PLAIN = 0
_BY_DICTIONARY = (2, 8)
"""Encodings: values as they are, and numbers of values of the dictionary page."""
_LENGTH_BYTES = 4


class UnknownPageError(ValueError):
    """A page is stored in a way that cannot be read at a place; the text says how."""


class Bytes(Protocol):
    """A file in memory."""

    def __getitem__(self, part: slice, /) -> bytes:
        """Return a part of it."""


@dataclass
class Places:
    """Places of the values of a column in a shard."""

    codec: str
    """Codec of the pages; empty if they are not packed."""
    blocks: list[Block] = field(default_factory=list)
    values: list[tuple[int, int]] = field(default_factory=list)
    """Place and size of the values that stand for themselves, in order. They count from the start
    of the file, or in the unpacked blocks if there is a codec."""
    dictionary: dict[bytes, tuple[int, int]] = field(default_factory=dict)
    """Place and size of each value of the dictionary page of the latest column chunk."""
    unpacked: int = 0
    """Size of all blocks when unpacked."""

    def read_chunk(self, file: Bytes, start: int, size: int, levels: int) -> None:
        """Find the values of one column chunk; those of an earlier one are forgotten.

        Args:
            file: The file.
            start: Where the chunk starts.
            size: Its size in bytes.
            levels: Number of values that may be missing on the way to one of these.

        Raises:
            UnknownPageError: If a page is stored in another way.
        """
        self.values, self.dictionary = [], {}
        at, end = start, start + size
        while at < end:
            header, at = _read_struct(file, at)
            try:
                self._read_page(file, at, header, levels)
                at += header[3]
            except (KeyError, IndexError, TypeError) as error:
                raise UnknownPageError(f"a page that makes no sense ({one_line(error)})") from error

    def _read_page(self, file: Bytes, at: int, header: dict[int, Any], levels: int) -> None:
        kind, unpacked_size, size = header[1], header[2], header[3]
        if size < 0 or unpacked_size < 0:
            raise UnknownPageError("a page of negative size")
        if kind == _DICTIONARY:
            content, base = self._content(file, at, size, unpacked_size, is_packed=True)
            for place, length in _lengths(content, 0, header[7][1]):
                self.dictionary[content[place : place + length]] = (base + place, length)
        elif kind == _DATA:
            if _is_plain(header[5][2]):
                content, base = self._content(file, at, size, unpacked_size, is_packed=True)
                skipped = _length(content, 0) + _LENGTH_BYTES if levels else 0
                self._add(content, base, skipped)
        elif kind == _DATA_2:
            page = header[8]
            if _is_plain(page[4]):
                before = page[5] + page[6]
                sizes = (size - before, unpacked_size - before)
                is_packed = page.get(7, True)
                self._add(*self._content(file, at + before, *sizes, is_packed=is_packed), 0)

    def _add(self, content: bytes, base: int, skipped: int) -> None:
        self.values += [
            (base + place, length) for place, length in _lengths(content, skipped, None)
        ]

    def _content(
        self, file: Bytes, at: int, size: int, unpacked_size: int, *, is_packed: bool
    ) -> tuple[bytes, int]:
        """Return a page unpacked, and where its first byte is."""
        content = file[at : at + size]
        if not self.codec:
            return content, at
        base = self.unpacked
        self.unpacked += unpacked_size
        if not is_packed:
            self.blocks.append(Block(base, at, size, unpacked_size, False))
            return content, base
        self.blocks += blocks_of(content, at, base, unpacked_size, self.codec)
        unpack = import_arrow().Codec(self.codec).decompress
        return unpack(content, unpacked_size, asbytes=True), base


def _is_plain(encoding: int) -> bool:
    if encoding != _PLAIN and encoding not in _BY_DICTIONARY:
        raise UnknownPageError(f"encoding {encoding}")
    return encoding == _PLAIN


def _lengths(content: bytes, at: int, count: int | None) -> Iterator[tuple[int, int]]:
    """Yield place and size of values that stand one after the other, up to a count or the end."""
    done = 0
    while at < len(content) if count is None else done < count:
        length = _length(content, at)
        at += _LENGTH_BYTES
        if at + length > len(content):
            raise UnknownPageError("a value that ends behind its page")
        yield at, length
        at, done = at + length, done + 1


def _length(content: bytes, at: int) -> int:
    return int.from_bytes(content[at : at + _LENGTH_BYTES], "little")


# Headers are structs in Thrift's compact protocol: a byte for each field, with its type and how far
# its number is from the one before; whole numbers in groups of 7 bits.


def _read_struct(file: Bytes, at: int) -> tuple[dict[int, Any], int]:
    found, number = dict[int, Any](), 0
    while True:
        byte, at = file[at : at + 1], at + 1
        if byte == b"\0":
            return found, at
        if not byte:
            raise UnknownPageError("a header that ends too early")
        step, kind = byte[0] >> 4, byte[0] & 15
        if step:
            number += step
        else:
            raw, at = _read_varint(file, at)
            number = _signed(raw)
        found[number], at = _read_value(file, at, kind)


def _read_value(file: Bytes, at: int, kind: int) -> tuple[Any, int]:
    if kind in (1, 2):
        return kind == 1, at
    if kind == 3:
        return file[at : at + 1], at + 1
    if kind in (4, 5, 6):
        raw, at = _read_varint(file, at)
        return _signed(raw), at
    if kind == 8:
        size, at = _read_varint(file, at)
        return file[at : at + size], at + size
    if kind == 12:
        return _read_struct(file, at)
    raise UnknownPageError(f"a header with a field of type {kind}")


def _read_varint(file: Bytes, at: int) -> tuple[int, int]:
    number = 0
    for shift in range(0, 70, 7):
        byte = file[at : at + 1]
        if not byte:
            break
        at += 1
        number |= (byte[0] & 127) << shift
        if byte[0] < 128:
            return number, at
    raise UnknownPageError("a header with a number that does not end")


def _signed(raw: int) -> int:
    return (raw >> 1) ^ -(raw & 1)
