"""From folders of other formats into a cache."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from cache.backend.directory import is_started
from cache.errors import CacheError, CacheFullError
from cache.exchange import folder_formats, webdataset
from cache.exchange.folder_formats import Found, Source, refuse
from cache.exchange.merging import Batches, Report
from cache.store import Store


class Format(NamedTuple):
    """A format that is read."""

    read: Callable[[Source], Iterator[Found]]
    is_one: Callable[..., bool]


FORMATS: dict[str, Format] = {
    "folder": Format(folder_formats.read_export, folder_formats.is_export),
    "diff-mix": Format(folder_formats.read_diff_mix, folder_formats.is_diff_mix),
    "diffusemix": Format(folder_formats.read_diffusemix, folder_formats.is_diffusemix),
    "webdataset": Format(webdataset.read, webdataset.is_one),
    "images": Format(folder_formats.read_classes, Path.is_dir),
}
"""In the order in which a folder is tried, unless the format is said."""


def find(source: Source, format: str | None = None) -> tuple[str, Iterator[Found]]:
    """The format of a folder and the images in it, at least one.

    Raises:
        CacheError: If there is no such folder, or no image in it.
    """
    root = source.root
    if not root.exists():
        raise CacheError(f"source must be a folder or a tar shard, got {root} which does not exist")
    if is_started(root):
        raise CacheError(f"source must hold images, got the cache {root}; merge joins caches")
    tried = FORMATS if format is None else [format]
    format = next((name for name in tried if FORMATS[name].is_one(root)), None)
    if format is None:
        raise CacheError(f"source must be of the format {' or '.join(tried)}, got {root}")
    images = FORMATS[format].read(source)
    first = next(images, None)
    if first is None:
        raise CacheError(f"source must hold images as {format}, got none in {root}")
    return format, chain([first], _to_the_end(images, root))


def load(images: Iterator[Found], store: Store, tell: Callable[[int], None]) -> Report:
    """Put `images` into the store, batch by batch; broken ones are left out and reported.

    Cut short, the next call finds what is there and adds the rest. `tell` is called with how many
    were looked at.

    Raises:
        CacheError: If none of them can be read, or the store cannot be written.
    """
    batches = Batches(store, tell)
    try:
        _add_all(images, batches)
        batches.flush()
    except CacheFullError as error:
        batches.report.stop(error)
    if not batches.report.done + batches.report.present:
        name, reason = batches.report.problems[0]
        raise CacheError(f"source must hold an image that can be read, got none; {name}: {reason}")
    return batches.report


def _add_all(images: Iterator[Found], batches: Batches) -> None:
    for name, read in images:
        try:
            record = read()
        except CacheError as error:
            batches.report.leave_out(name, error)
        else:
            batches.add(record)


def _to_the_end(images: Iterator[Found], root: Path) -> Iterator[Found]:
    # What breaks a table or folder in the middle costs its rest, not what was read before.
    try:
        yield from images
    except CacheError as error:
        yield str(root), partial(refuse, str(error))
