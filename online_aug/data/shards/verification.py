"""Verify the indexes of shards: all shards that are known are read again and compared."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from online_aug.data.shards.index import INDEX_FILE, SUFFIX, is_unchanged, read_shard
from online_aug.data.shards.index_file import Known, packed, read_index
from online_aug.errors import UserError
from online_aug.file_digests.known import FOLDER, Progress, Verified
from online_aug.files import alone, write_atomically


def shard_indexes(folder: Path) -> list[Path]:
    """Return the indexes in a folder of shards, or beside a cache."""
    beside = folder / INDEX_FILE
    return [beside] * beside.is_file() + sorted((folder / FOLDER).glob(f"*{SUFFIX}"))


def verify_shards(path: Path, progress: Progress | None = None) -> Verified | None:
    """Read all shards of an index again and take out those that hold something else.

    Args:
        path: The index.
        progress: Is told how many shards are read and how many are to be.

    Returns:
        What was found, in images; None if the index is broken or of another version.

    Raises:
        OSError: If it cannot be written.
    """
    with alone(path.with_suffix(".lock")):
        index = read_index(path)
        if index is None:
            return None
        root = path.parent if path.name == INDEX_FILE else index.root
        same = [known for known in index.shards.values() if is_unchanged(root, known)]
        wrong, right = list[str](), dict(index.shards)
        for done, known in enumerate(same):
            names = list(_wrong(root, known))
            wrong += names
            if names:
                del right[known.file.name]
            if progress:
                progress(done + 1, len(same))
        if wrong:
            write_atomically(path, packed(root, right))
    count = sum(len(known.content.images) for known in index.shards.values())
    unchanged = sum(len(known.content.images) for known in same)
    return Verified(root, count, count - unchanged, tuple(wrong))


def _wrong(root: Path, known: Known) -> Iterator[str]:
    """Yield the images of a shard that are not what the index says, or the shard itself."""
    shard, then = known.file.name, known.content
    try:
        now = read_shard(root, known.file).content
    except UserError:
        yield shard
        return
    if now.names != then.names or (now.images["label"] != then.images["label"]).any():
        yield shard
        return
    for place in np.flatnonzero(now.images["digest"] != then.images["digest"]):
        yield f"{shard}/{then.names[int(place)]}"
