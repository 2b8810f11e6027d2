"""The file of an index: what is known of the shards of a folder, replaced as a whole.

The first line is a JSON object with the version, the digest of the rest and the size of the second
part, a JSON object with a row for each shard. The arrays and names of the shards follow.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cache import content_digest
from online_aug.data.shards.content import BLOCK, IMAGE, Content, ShardFile
from online_aug.documents import open_regular
from online_aug.file_digests.index import State
from online_aug.file_digests.names import Names

VERSION = 1
_HEAD = {"version": int, "digest": str, "rows": int}
_SIZES = ("images", "blocks", "names")
_STATE = ("size", "mtime_ns", "inode", "read_ns")


@dataclass(frozen=True, eq=False)
class Known:
    """A shard as it was when it was read."""

    file: ShardFile
    state: State
    """Size, time of the last change in ns, and inode."""
    read_ns: int
    """Time before it was read, ns."""
    content: Content


@dataclass(frozen=True, eq=False)
class IndexFile:
    """Content of the file of an index."""

    root: Path
    """Folder of the shards."""
    shards: Mapping[str, Known]
    """What is known of the shards, by their names."""

    @classmethod
    def empty(cls) -> "IndexFile":
        """Return one that knows nothing."""
        return cls(Path(), {})


def packed(root: Path, shards: Mapping[str, Known]) -> bytes:
    """Return the content of the file of an index.

    Args:
        root: Folder of the shards.
        shards: What is known of them, by their names.
    """
    names: dict[tuple[str, ...], int] = {}  # classes, which many shards share
    rows, parts = [], []
    for known in shards.values():
        content = known.content
        arrays = [content.images.tobytes(), content.blocks.tobytes(), content.names.content]
        listed = content.class_names
        rows.append(
            {
                "file": [known.file.name, known.file.image_key, known.file.label_key],
                **dict(zip(_STATE, (*known.state, known.read_ns), strict=True)),
                **dict(zip(_SIZES, map(len, arrays), strict=True)),
                "samples": content.samples,
                "codec": content.codec,
                "classes": None if listed is None else names.setdefault(listed, len(names)),
                "words": content.words,
                "left_out": content.left_out,
            }
        )
        parts += arrays
    folder = os.fsencode(root.resolve()).hex()
    head = json.dumps({"root": folder, "shards": rows, "classes": list(names)}).encode()
    rest = b"".join([head, *parts])
    first = {"version": VERSION, "digest": content_digest(rest), "rows": len(head)}
    return json.dumps(first).encode() + b"\n" + rest


def read_index(path: Path) -> IndexFile | None:
    """Read the file of an index; None if there is none, or if it is broken or another version's."""
    try:
        with open_regular(path) as file:
            line, rest = file.readline(2**12), file.read()
        head = json.loads(line)
        if {name: type(value) for name, value in head.items()} != _HEAD:
            return None
        if head["version"] != VERSION or head["digest"] != content_digest(rest):
            return None
        listed = json.loads(rest[: head["rows"]])
        root = Path(os.fsdecode(bytes.fromhex(listed["root"])))
        return IndexFile(root, _shards(listed, rest, head["rows"]))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, MemoryError):
        return None


def _shards(listed: Mapping[str, Any], rest: bytes, at: int) -> dict[str, Known]:
    found, names = {}, [tuple(each) for each in listed["classes"]]
    for row in listed["shards"]:
        ends = np.cumsum([at, *(row[size] for size in _SIZES)]).tolist()
        images, blocks, image_names = (
            rest[start:end] for start, end in zip(ends[:-1], ends[1:], strict=True)
        )
        at = ends[-1]
        content = Content(
            images=np.frombuffer(images, IMAGE).copy(),
            names=Names(image_names),
            samples=row["samples"],
            blocks=np.frombuffer(blocks, BLOCK),
            codec=row["codec"],
            class_names=None if row["classes"] is None else names[row["classes"]],
            words=row["words"] and tuple(row["words"]),
            left_out=row["left_out"],
        )
        size, mtime_ns, inode, read_ns = (row[name] for name in _STATE)
        file = ShardFile(*row["file"])
        found[file.name] = Known(file, (size, mtime_ns, inode), read_ns, content)
    return found
