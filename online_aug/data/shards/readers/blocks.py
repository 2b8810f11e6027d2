"""Parts of a shard that are packed one by one: an image is unpacked from those that it lies in."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from online_aug.data.shards.content import Content, import_arrow

SNAPPY = "snappy"
_SNAPPY_FRAGMENT_BYTES = 2**16
"""Bytes that Snappy's compressors take at a time: no copy reaches back over this border."""
_FEWEST_STEPS, _BYTES_A_STEP = 2**16, 128
"""Steps through a page after which it stays one block: it packs so well that it is small."""


class Block(NamedTuple):
    """A row of `BLOCK`."""

    at: int
    start: int
    packed: int
    unpacked: int
    is_packed: bool


def unpacked(read: Callable[[int, int], bytes], content: Content, start: int, size: int) -> bytes:
    """Return bytes at a place in the unpacked blocks of a shard.

    Args:
        read: Returns bytes of the shard by start and size.
        content: Says what the blocks are.
        start: Place in the unpacked blocks, one after the other.
        size: Number of bytes.
    """
    before = content.blocks["at"]
    first = int(np.searchsorted(before, start, side="right")) - 1
    end = int(np.searchsorted(before, start + size, side="left"))
    chosen = [Block(*row) for row in content.blocks[first : max(end, first + 1)].tolist()]
    offset = start - chosen[0].at
    parts = [_unpack(read(block.start, block.packed), block, content.codec) for block in chosen]
    return b"".join(parts)[offset : offset + size]


def _unpack(packed: bytes, block: Block, codec: str) -> bytes:
    if not block.is_packed:
        return packed
    if codec == SNAPPY:  # the length stands before a whole page alone
        packed = _varint(block.unpacked) + packed
    found: bytes = import_arrow().Codec(codec).decompress(packed, block.unpacked, asbytes=True)
    return found


def blocks_of(
    packed: bytes, start: int, at: int, unpacked_size: int, codec: str
) -> Iterator[Block]:
    """Yield the smallest parts of a packed page that can be unpacked alone.

    Args:
        packed: The page.
        start: Its place in the shard.
        at: Number of unpacked bytes before it.
        unpacked_size: Its size when unpacked.
        codec: How it is packed.
    """
    if codec != SNAPPY:
        yield Block(at, start, len(packed), unpacked_size, True)
        return
    before = _varint_bytes(packed)
    most_steps = _FEWEST_STEPS + unpacked_size // _BYTES_A_STEP
    borders = _snappy_borders(packed, before, most_steps) or [
        (before, 0),
        (len(packed), unpacked_size),
    ]
    for (place, done), (end, more) in zip(borders[:-1], borders[1:], strict=True):
        yield Block(at + done, start + place, end - place, more - done, True)


def _snappy_borders(packed: bytes, at: int, most_steps: int) -> list[tuple[int, int]]:
    """Return places in a page and in what it unpacks to where its parts begin, and both ends.

    A page of photos is a few long literals. None are returned if a copy reaches back over a border,
    or if there are too many steps.
    """
    borders, done, fragment = [(at, 0)], 0, 0
    for _ in range(most_steps):
        if at == len(packed):
            return [*borders, (at, done)] if borders[-1] != (at, done) else borders
        if done - fragment == _SNAPPY_FRAGMENT_BYTES:
            borders.append((at, done))
            fragment = done
        tag = packed[at]
        kind, length = tag & 3, (tag >> 2) + 1
        if kind == 0:
            wide = max(0, length - 60)
            if wide:
                length = int.from_bytes(packed[at + 1 : at + 1 + wide], "little") + 1
            at += 1 + wide + length
        else:
            reach, at = _copy(packed, at, kind)
            length = (tag >> 2 & 7) + 4 if kind == 1 else length
            if reach > done - fragment:
                return []
        done += length
        if done - fragment > _SNAPPY_FRAGMENT_BYTES:
            return []
    return []


def _copy(packed: bytes, at: int, kind: int) -> tuple[int, int]:
    """Return how far back a copy reaches, and where its tag ends."""
    if kind == 1:
        return (packed[at] >> 5) << 8 | packed[at + 1], at + 2
    width = 2 if kind == 2 else 4
    return int.from_bytes(packed[at + 1 : at + 1 + width], "little"), at + 1 + width


def _varint(number: int) -> bytes:
    parts = []
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])


def _varint_bytes(packed: bytes) -> int:
    return next(place for place, byte in enumerate(packed) if byte < 128) + 1
