"""Source images by the digest of their file, found in a folder."""

import os
from collections.abc import Iterable
from pathlib import Path

from cache.codec import MAX_IMAGE_BYTES
from cache.errors import CacheError
from cache.exchange.files import open_regular, read_bounded, walk_images
from cache.key import content_digest


def find_sources(root: Path, digests: Iterable[str]) -> dict[str, Path]:
    """Files under `root` by their digest, for those of `digests` that are there.

    Raises:
        CacheError: If `root` is no folder.
    """
    if not root.is_dir():
        raise CacheError(f"sources must be a folder, got {root}")
    wanted = set(digests)
    found: dict[str, Path] = {}
    for name in walk_images(root):
        if not wanted:
            break
        digest = _digest(root / name)
        if digest in wanted:
            wanted.remove(digest)
            found[digest] = root / name
    return found


def _digest(path: Path) -> str | None:
    # The user's own folder: links are followed here, as a data loader does.
    try:
        with open_regular(Path(os.path.realpath(path))) as file:
            return content_digest(read_bounded(file, MAX_IMAGE_BYTES))
    except CacheError:
        return None
