"""WebDataset shards: tars in which an image, its JSON and its class share a name.

Tar files, uncompressed, a member at a time.

The standard library's reader keeps every member in a list and reads as much as a header asks for.
"""

import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from io import BufferedReader
from itertools import groupby
from pathlib import Path
from typing import BinaryIO

from cache.codecs import MAX_IMAGE_BYTES
from cache.errors import CacheError
from cache.exchange.folder_formats import Found, Source, foreign, refuse
from cache.exchange.image_files import (
    IMAGE_SUFFIXES,
    MAX_TEXT_BYTES,
    as_file,
    from_file,
    open_regular,
)
from cache.exchange.rows import ClassNames, from_row, label_of, to_row
from cache.keys import Scalar
from cache.record import Record

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


RECORDS_A_SHARD = 1000
_LIMITS = dict.fromkeys(IMAGE_SUFFIXES, MAX_IMAGE_BYTES) | {".json": MAX_TEXT_BYTES, ".cls": 100}
"""Bytes of a member by its suffix; members with others are passed over."""


class WebDatasetWriter:
    """Writes `shard-000000.tar` and so on, each with a thousand records, and `classes.txt`."""

    def __init__(self, folder: Path, classes: ClassNames) -> None:
        """Start in an empty folder."""
        self._folder, self._count = folder, 0
        self._tar: BinaryIO | None = None
        if classes.names:
            lines = (name.replace("\n", " ") + "\n" for name in classes.names)
            (folder / "classes.txt").write_text("".join(lines), encoding="utf-8")

    def add(self, stored: Record) -> None:
        """Write `KEY.png` (or `.jpg`, `.webp`), `KEY.json` and, with the label, `KEY.cls`."""
        suffix, content = as_file(stored)
        if self._count % RECORDS_A_SHARD == 0:
            self._next_shard()
        self._count += 1
        self._write(stored, suffix, content)
        self._write(stored, ".json", json.dumps(to_row(stored), ensure_ascii=False).encode())
        label = label_of(stored.request, "target")
        if label is not None:
            self._write(stored, ".cls", str(label).encode())

    def close(self) -> None:
        """Finish the last shard."""
        if self._tar is not None:
            with self._tar:
                write_end(self._tar)
            self._tar = None

    def _next_shard(self) -> None:
        self.close()
        name = f"shard-{self._count // RECORDS_A_SHARD:06d}.tar"
        self._tar = (self._folder / name).open("wb")

    def _write(self, stored: Record, suffix: str, content: bytes) -> None:
        assert self._tar is not None
        write_member(self._tar, stored.key.hex() + suffix, content)


def read(source: Source) -> Iterator[Found]:
    """The images of all shards of a folder, or of one shard, under the requests they had.

    An image without a record's JSON gets its class, where it has one, and its digest.
    """
    for path in _shards(source.root):
        try:
            with open_regular(path) as file:
                members = (m for m in read_members(file) if _suffix(m) in _LIMITS)
                for stem, group in groupby(members, key=_stem):
                    parts = {_suffix(member): _content(member) for member in group}
                    yield f"{path.name}: {stem}", partial(_load, source, parts)
        except CacheError as error:
            yield path.name, partial(refuse, str(error))


def is_one(root: Path) -> bool:
    """Whether there are shards."""
    return any(_shards(root))


def _shards(root: Path) -> list[Path]:
    if root.is_file() and root.suffix == ".tar":
        return [root]
    return sorted(path for path in root.glob("*.tar") if not path.name.startswith("."))


def _content(member: Member) -> bytes | CacheError:
    try:
        return member.read(_LIMITS[_suffix(member)])
    except CacheError as error:
        return error


def _stem(member: Member) -> str:
    folder, _, name = member.name.rpartition("/")
    return f"{folder}/{name.partition('.')[0]}".lstrip("/")


def _suffix(member: Member) -> str:
    return "." + member.name.rpartition("/")[2].partition(".")[2].lower()


def _load(source: Source, parts: dict[str, bytes | CacheError]) -> Record:
    for part in parts.values():
        if isinstance(part, CacheError):
            raise part
    whole = {suffix: part for suffix, part in parts.items() if isinstance(part, bytes)}
    images = [part for suffix, part in whole.items() if suffix in IMAGE_SUFFIXES]
    if len(images) != 1:
        raise CacheError(f"there must be one image of this name, got {len(images)}")
    row = _json(whole.get(".json", b"{}"))
    if {"key", "request"} <= row.keys():
        return from_file(images[0], from_row(row))
    label = whole.get(".cls", b"").strip()
    fields: dict[str, Scalar] = {}
    if label.isdigit():
        fields = {"source_label": int(label), "target_label": int(label)}
    return from_file(images[0], foreign(source.method or "webdataset", images[0], fields))


def _json(content: bytes) -> dict[str, object]:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise CacheError("JSON must be well-formed") from error
    if not isinstance(value, dict):
        raise CacheError("JSON must be an object")
    return value
