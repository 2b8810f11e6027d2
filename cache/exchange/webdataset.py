"""WebDataset shards: tar files in which an image, its JSON and its class share a name."""

import json
import os
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from io import BufferedReader, BytesIO
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Self, cast

from cache.codecs import MAX_IMAGE_BYTES
from cache.errors import CacheError
from cache.exchange.folder_formats import FoundImage, ImportFolder, describe_foreign, refuse
from cache.exchange.image_files import (
    IMAGE_SUFFIXES,
    MAX_TEXT_BYTES,
    as_file,
    from_file,
    open_regular,
)
from cache.exchange.metadata import ClassNames, from_row, to_row
from cache.keys import Scalar, label_of
from cache.record import Record

RECORDS_PER_SHARD = 1000
_MOST_CLASSES = 2**20
"""Labels beyond this, of whatever program, are not listed by name."""
_MEMBER_LIMITS = dict.fromkeys(IMAGE_SUFFIXES, MAX_IMAGE_BYTES) | {
    ".json": MAX_TEXT_BYTES,
    ".cls": 100,
}
"""Largest size of a member by its suffix, bytes; members with other suffixes are passed over."""
_MAX_HEADER_BYTES = 2**20
"""What the headers of one member may take, long names and other extensions included."""

_Part = tuple[str, bytes | CacheError]
"""Name of a member, and its content or the reason why it cannot be had."""


class WebDatasetWriter:
    """Writes `shard-000000.tar` and so on with 1000 records each, and `classes.txt`.

    That file has a line for each label, digits where no record names the class.
    """

    def __init__(self, folder: Path, classes: ClassNames) -> None:
        """Start in an empty folder."""
        self._folder, self._count = folder, 0
        self._tar: tarfile.TarFile | None = None
        self._classes, self._names = classes, dict(enumerate(classes.names))

    def add(self, record: Record) -> None:
        """Write `KEY.png` (or `.jpg`, `.webp`), `KEY.json` and, if it has a label, `KEY.cls`."""
        suffix, content = as_file(record)
        row = json.dumps(to_row(record, self._classes), ensure_ascii=False)
        parts = {suffix: content, ".json": row.encode()}
        for side in ("source", "target"):
            label, name = label_of(record.request, side), self._classes.name_in(record, side)
            if label is not None and name is not None:
                self._names[label] = name
        if (label := label_of(record.request, "target")) is not None:
            parts[".cls"] = str(label).encode()
        tar = self._next_shard() if self._count % RECORDS_PER_SHARD == 0 else self._tar
        assert tar is not None
        self._count += 1
        for ending, data in parts.items():
            member = tarfile.TarInfo(record.key.hex() + ending)
            member.size = len(data)
            tar.addfile(member, BytesIO(data))

    def close(self) -> None:
        """Finish the last shard and list the classes."""
        self._close_shard()
        if self._names:
            labels = range(min(max(self._names) + 1, _MOST_CLASSES))
            names = (self._names.get(label, f"{label:04d}") for label in labels)
            lines = (name.replace("\n", " ") + "\n" for name in names)
            (self._folder / "classes.txt").write_text("".join(lines), encoding="utf-8")

    def _close_shard(self) -> None:
        if self._tar is not None:
            self._tar.close()
            self._tar = None

    def _next_shard(self) -> tarfile.TarFile:
        self._close_shard()
        name = f"shard-{self._count // RECORDS_PER_SHARD:06d}.tar"
        self._tar = tarfile.TarFile(self._folder / name, "w", format=tarfile.USTAR_FORMAT)
        return self._tar


def has_shards(root: Path) -> bool:
    """Return whether a path is a tar file or a folder with some."""
    return any(_shards(root))


def read_shards(source: ImportFolder) -> Iterator[FoundImage]:
    """Find the images of all shards of a folder, or of one shard, with their own requests.

    An image without a record's JSON gets a request from its class, if it has one, and its digest.
    """
    for path in _shards(source.root):
        try:
            with open_regular(path) as file:
                for group in _groups(_parts(file)):
                    for stem, parts in _samples(group):
                        yield f"{path.name}: {stem}", partial(_load, source, parts)
        except CacheError as error:
            yield path.name, partial(refuse, str(error))


def _shards(root: Path) -> list[Path]:
    if root.is_file() and root.suffix == ".tar":
        return [root]
    return sorted(path for path in root.glob("*.tar") if not path.name.startswith("."))


def _parts(file: BufferedReader) -> Iterator[_Part]:
    bounded, file_bytes = _BoundedHeaders(file), os.fstat(file.fileno()).st_size
    try:
        with tarfile.open(
            fileobj=cast("BinaryIO", bounded),  # a stream is only read
            mode="r|",
            tarinfo=_CheckedHeader,
            encoding="utf-8",
        ) as tar:
            while (member := tar.next()) is not None:
                if tar.offset > file_bytes:  # tarfile would read on for as long as a header says
                    raise CacheError("shard must be a whole tar file: unexpected end of data")
                bounded.end = tar.offset + _MAX_HEADER_BYTES
                tar.members.clear()  # type: ignore[attr-defined]  # it would keep all of them
                if _suffix(member.name) in _MEMBER_LIMITS:
                    yield member.name, _content(tar, member)
    except CacheError:
        raise
    except Exception as error:  # tarfile raises TarError, ValueError and others, by the header
        raise CacheError(f"shard must be a whole tar file: {error}") from error


class _BoundedHeaders:
    """Reads a file, but only up to `end`: headers of any length do not fill the memory."""

    def __init__(self, file: BufferedReader) -> None:
        self.end = _MAX_HEADER_BYTES
        self._file, self._read = file, 0

    def read(self, size: int) -> bytes:
        if self._read > self.end:
            raise CacheError(f"shard must have headers of at most {_MAX_HEADER_BYTES} bytes")
        content = self._file.read(size)
        self._read += len(content)
        return content


class _CheckedHeader(tarfile.TarInfo):
    """Raises for a broken header, which `tarfile` takes for the end of the file."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        is_end = not buf.strip(b"\0")
        try:
            header = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if is_end:
                raise
            raise CacheError(f"shard must be a whole tar file: {error}") from error
        if header.size < 0:
            raise CacheError(f"shard must be a whole tar file: size {header.size}")
        return header


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes | CacheError:
    limit = _MEMBER_LIMITS[_suffix(member.name)]
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.issparse():
        return CacheError("member must be a plain file, not a link or device")
    if member.size > limit:
        return CacheError(f"member must be at most {limit} bytes, got {member.size}")
    file = tar.extractfile(member)
    assert file is not None
    return file.read()


def _groups(parts: Iterable[_Part]) -> Iterator[dict[str, bytes | CacheError]]:
    """Collect members in a row whose names agree up to the first dot; no name twice in a group."""
    group: dict[str, bytes | CacheError] = {}
    for name, content in parts:
        if group and (name in group or _key(name) != _key(next(iter(group)))):
            yield group
            group = {}
        group[name] = content
    if group:
        yield group


def _samples(
    group: Mapping[str, bytes | CacheError],
) -> Iterator[tuple[str, dict[str, bytes | CacheError]]]:
    """Give every image of a group what describes it, by suffix.

    That is what has its name up to the last dot or, if there is none, up to the first: an image
    `a.left.png` takes `a.left.cls` before `a.cls`.
    """
    key = _key(next(iter(group)))
    stems = dict.fromkeys(_stem(name) for name in group if _suffix(name) in IMAGE_SUFFIXES)
    for stem in stems or [key]:
        shared = {_suffix(n): c for n, c in group.items() if _stem(n) == key != stem}
        own = {_suffix(n): c for n, c in group.items() if _stem(n) == stem}
        described = {s: c for s, c in shared.items() if s not in IMAGE_SUFFIXES}
        yield stem, described | own


def _key(name: str) -> str:
    folder, _, file_name = name.rpartition("/")
    return f"{folder}/{file_name.partition('.')[0]}".lstrip("/")


def _stem(name: str) -> str:
    return name.removesuffix(PurePosixPath(name).suffix).lstrip("/")


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def _load(source: ImportFolder, parts: dict[str, bytes | CacheError]) -> Record:
    contents: dict[str, bytes] = {}
    for suffix, part in parts.items():
        if isinstance(part, CacheError):
            raise part
        contents[suffix] = part
    images = [content for suffix, content in contents.items() if suffix in IMAGE_SUFFIXES]
    if len(images) != 1:
        raise CacheError(f"there must be one image of this name, got {len(images)}")
    row = _json_object(contents.get(".json", b"{}"))
    if {"key", "request"} <= row.keys():
        return from_file(images[0], from_row(row))
    label = contents.get(".cls", b"").strip()
    fields: dict[str, Scalar] = {}
    if label.isdigit():
        fields = {"source_label": int(label), "target_label": int(label)}
    description = describe_foreign(source.method or "webdataset", images[0], fields)
    return from_file(images[0], description)


def _json_object(content: bytes) -> dict[str, object]:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise CacheError("JSON must be well-formed") from error
    if not isinstance(value, dict):
        raise CacheError("JSON must be an object")
    return value
