"""Tell from a few bytes that a file is surely a whole image of an ordinary kind.

A library that reads all formats takes as long to find that out as it takes to read a small file.
Here only PNG and JPEG are known, and only headers in which that library finds nothing to refuse;
whatever is less plain is left to it.
"""

import struct
import zlib
from collections.abc import Iterator

MAX_PIXELS = 64 * 2**20
"""Largest number of pixels that is decoded: 192 MiB as RGB."""
HEAD_BYTES, TAIL_BYTES = 2**16, 1024
"""How much of the beginning and the end of a file is looked at."""
END_OF_JPEG, END_OF_PNG = b"\xff\xd9", b"IEND"
"""What the last bytes of a whole file hold."""

_PNG = b"\x89PNG\r\n\x1a\n"
_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
"""Bits of each kind of PNG's colours."""
_CHUNKS = {b"gAMA": 4, b"sRGB": 1, b"cHRM": 32, b"pHYs": 9, b"tIME": 7}
"""Chunks before the pixels, and their size; any text is plain too."""
_FRAMES = {0xC0, 0xC1, 0xC2}
_PASSED_OVER = {0xC4, 0xDD, 0xFE}
_SCAN, _TABLES = 0xDA, 0xDB


def is_plain_image(head: bytes, tail: bytes) -> bool:
    """Tell whether a file is surely an image that can be opened, and has not been cut short.

    Args:
        head: Its first bytes, or all.
        tail: Its last bytes.
    """
    if head.startswith(_PNG):
        return _is_plain_png(head) and END_OF_PNG in tail[-TAIL_BYTES:]
    if head.startswith(b"\xff\xd8\xff"):
        return _is_plain_jpeg(head) and END_OF_JPEG in tail[-TAIL_BYTES:]
    return False


def _is_plain_png(head: bytes) -> bool:
    kind, at = None, len(_PNG)
    while len(head) >= at + 12:
        length, name = struct.unpack_from(">I4s", head, at)
        if name == b"IDAT":
            return kind is not None
        data = head[at + 8 : at + 8 + length]
        at += 12 + length
        if len(head) < at or zlib.crc32(data, zlib.crc32(name)) != _number(head, at - 4, 4):
            return False
        if kind is None:
            if name != b"IHDR" or length != 13 or not _is_plain_header(data):
                return False
            kind = data[9]
        elif not (_CHUNKS.get(name) == length or name == b"tEXt" or _is_palette(name, data)):
            return False
    return False


def _is_plain_header(data: bytes) -> bool:
    width, height, depth, kind, packing, filters, _ = struct.unpack(">II5B", data)
    is_known = depth in _DEPTHS.get(kind, ()) and packing == filters == 0
    return is_known and 0 < width * height <= MAX_PIXELS


def _is_palette(name: bytes, data: bytes) -> bool:
    return name == b"PLTE" and 0 < len(data) <= 768 and len(data) % 3 == 0


def _is_plain_jpeg(head: bytes) -> bool:
    has_frame = False
    for marker, data in _segments(head):
        if marker == _SCAN:
            return has_frame
        if marker in _FRAMES:
            if has_frame or not _is_plain_frame(data):
                return False
            has_frame = True
        elif marker == _TABLES:
            if not _are_whole_tables(data):
                return False
        elif not (marker in _PASSED_OVER or _is_plain_remark(marker, data)):
            return False
    return False


def _segments(head: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield markers and what belongs to them, as far as they are whole."""
    at = 2
    while len(head) >= at + 4 and head[at] == 0xFF:
        end = at + 2 + _number(head, at + 2, 2)
        if end < at + 4 or end > len(head):
            return
        yield head[at + 1], head[at + 4 : end]
        at = end


def _is_plain_frame(data: bytes) -> bool:
    if len(data) < 6 or data[0] != 8 or data[5] not in (1, 3, 4):
        return False
    pixels = _number(data, 1, 2) * _number(data, 3, 2)
    return len(data) == 6 + 3 * data[5] and 0 < pixels <= MAX_PIXELS


def _are_whole_tables(data: bytes) -> bool:
    while data:
        size = 129 if data[0] >> 4 else 65
        if len(data) < size:
            return False
        data = data[size:]
    return True


def _is_plain_remark(marker: int, data: bytes) -> bool:
    """Tell whether a program's remark says nothing that has to be understood.

    Camera data, several pictures in one file and Photoshop's own are looked into by the library.
    """
    match marker:
        case 0xE0:
            return len(data) >= 14 or not data.startswith(b"JFIF")
        case 0xE2:
            return data.startswith(b"ICC_PROFILE\0") and len(data) > 14
        case 0xEE:
            return len(data) >= 12 or not data.startswith(b"Adobe")
    return False


def _number(content: bytes, at: int, size: int) -> int:
    return int.from_bytes(content[at : at + size], "big")
