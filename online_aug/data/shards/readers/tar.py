"""WebDataset's tar files: members of one key are a sample, read by their place in the file."""

import json
import os
import re
import tarfile
from collections.abc import Callable, Iterator
from io import BufferedReader
from pathlib import Path
from typing import NamedTuple

from online_aug.data.images import IMAGE_SUFFIXES
from online_aug.data.shards.content import WITHOUT_IMAGE, Content, ContentBuilder, ShardFile, shown
from online_aug.documents import DocumentError, open_regular, parse_json
from online_aug.errors import UserError, escaped

_NAME = re.compile(r"((?:.*/)?[^/.]+)\.([^/]+)")
"""WebDataset's key and ending of a member: the key ends at the first dot of the file name."""
_ENDINGS = tuple(dict.fromkeys(("jpg", "png", "webp", *sorted(s[1:] for s in IMAGE_SUFFIXES))))
"""Endings of images; of several in one sample the first counts, as in timm."""
_LABEL = "cls"
_BLOCK_BYTES = 512
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
"""First bytes of files that are no plain tar, and the program that unpacks them."""


class _Member(NamedTuple):
    name: str
    start: int
    size: int


_Read = Callable[[_Member], bytes]
_Sample = dict[str, _Member]


def read_tar(path: Path, wanted: ShardFile) -> Content:
    """Read the samples of a tar file once.

    The same key in two shards means two samples; twice in one shard it is refused, since nothing
    says which label belongs to which image.

    Raises:
        UserError: If it is compressed, cut short or damaged, has a key twice, or an image without
            a label.
        OSError: If it cannot be read.
    """
    found = ContentBuilder(path)
    keys: set[str] = set()
    with open_regular(path) as file:

        def read(member: _Member) -> bytes:
            content = os.pread(file.fileno(), member.size, member.start)
            if len(content) < member.size:
                raise _cut_short(path)
            return content

        for key, members in _samples(path, file):
            if key in keys:
                raise _twice(path, key)
            keys.add(key)
            image = _image_of(members, wanted)
            if image is None:
                found.leave_out(WITHOUT_IMAGE)
                continue
            label = _label(path, key, members, wanted.label_key, read)
            found.add(image.name, image.start, read(image), label)
    return found.finished()


def _image_of(members: _Sample, wanted: ShardFile) -> _Member | None:
    endings = _ENDINGS if wanted.image_key is None else (wanted.image_key.lower().lstrip("."),)
    return next((members[ending] for ending in endings if ending in members), None)


def _label(path: Path, key: str, members: _Sample, label_key: str | None, read: _Read) -> object:
    if label_key is not None:
        return _label_in_json(path, key, members, label_key, read)
    if _LABEL not in members:
        way_out = ", or data.label_key for its .json" if "json" in members else ""
        raise UserError(
            f"every image must have a label, {escaped(key)} of {shown(path)} has none: it needs a "
            f"member {escaped(key)}.{_LABEL}{way_out}"
        )
    text = read(members[_LABEL])[:80].decode(errors="replace").strip()
    try:
        return int(text)
    except ValueError:
        raise UserError(
            f"{escaped(key)}.{_LABEL} of {shown(path)} must be a whole number, got "
            f"{escaped(text)!r}"
        ) from None


def _label_in_json(path: Path, key: str, members: _Sample, label_key: str, read: _Read) -> object:
    if "json" not in members:
        raise UserError(
            f"every image must have a label, {escaped(key)} of {shown(path)} has none: its label "
            f"is {escaped(label_key)} of a member {escaped(key)}.json"
        )
    try:
        values = parse_json(read(members["json"]).decode())
    except (DocumentError, UnicodeDecodeError) as error:
        raise UserError(f"{escaped(key)}.json of {shown(path)} cannot be read: {error}") from None
    value = values
    for part in (label_key,) if _has(values, label_key) else label_key.split("."):
        if not _has(value, part):
            got = ", ".join(map(str, values)) if isinstance(values, dict) else json.dumps(values)
            raise UserError(
                f"data.label_key must be a key of the .json of each image, got {label_key}, which "
                f"{escaped(key)}.json of {shown(path)} lacks; it has {escaped(got)[:200]}"
            )
        value = value[part]
    if isinstance(value, str) and value.strip().lstrip("-").isdigit():
        return int(value)
    return value


def _has(values: object, key: str) -> bool:
    return isinstance(values, dict) and key in values


def _samples(path: Path, file: BufferedReader) -> Iterator[tuple[str, _Sample]]:
    """Group members of one key that follow one another, as WebDataset does."""
    key, members = "", _Sample()
    for member in _members(path, file):
        match = _NAME.fullmatch(member.name)
        if match is None or match[1].startswith("__"):
            continue
        if match[1] != key:
            if members:
                yield key, members
            key, members = match[1], _Sample()
        ending = match[2].lower()
        if ending in members:
            raise _twice(path, f"{key}.{ending}")
        members[ending] = member
    if members:
        yield key, members


def _members(path: Path, file: BufferedReader) -> Iterator[_Member]:
    size = os.fstat(file.fileno()).st_size
    _refuse_compressed(path, os.pread(file.fileno(), 8, 0))
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (info := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # it would keep them all
                if info.offset_data + info.size > size:
                    raise _cut_short(path)
                if info.issparse():
                    raise UserError(f"{shown(path)} must hold no sparse file, got {info.name}")
                if info.isreg():
                    yield _Member(info.name, info.offset_data, info.size)
            end = os.pread(file.fileno(), _BLOCK_BYTES, tar.offset)
    except tarfile.TarError as error:
        raise UserError(
            f"{shown(path)} must be a whole tar file: {error}; copy or write it again"
        ) from None
    if end != bytes(_BLOCK_BYTES):  # two empty blocks end an archive
        raise _cut_short(path) if len(end) < _BLOCK_BYTES else _damaged(path)


def _refuse_compressed(path: Path, first: bytes) -> None:
    for magic, program in _COMPRESSED.items():
        if first.startswith(magic):
            raise UserError(
                f"shards must be plain tar files, which can be read at any place, got {shown(path)}"
                f": unpack it with {program} -d"
            )


def _cut_short(path: Path) -> UserError:
    return UserError(
        f"{shown(path)} must be a whole tar file, it has been cut short: copy or write it again"
    )


def _damaged(path: Path) -> UserError:
    return UserError(
        f"{shown(path)} must be a whole tar file, it is damaged: copy or write it again"
    )


def _twice(path: Path, key: str) -> UserError:
    return UserError(
        f"keys must differ within a shard, {shown(path)} has {escaped(key)} twice: write it again"
    )
