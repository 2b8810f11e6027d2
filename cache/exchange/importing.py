"""Fill a cache: import folders of images and merge other caches."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from cache.backend.directory import DATA, LOCK, NOTE, cache_exists
from cache.backend.opening import is_in_use
from cache.errors import CacheError, CacheFullError
from cache.exchange import folder_formats, image_folder, webdataset
from cache.exchange.folder_formats import FoundImage, ImportFolder, refuse
from cache.exchange.records import Batches, Report, Unreadable, walk
from cache.store import Store


class Format(NamedTuple):
    """A format that can be imported."""

    read: Callable[[ImportFolder], Iterator[FoundImage]]
    recognises: Callable[..., bool]
    """Whether a path looks like this format."""


FORMATS: dict[str, Format] = {
    "folder": Format(image_folder.read_export, image_folder.is_export),
    "diff-mix": Format(folder_formats.read_diff_mix, folder_formats.is_diff_mix),
    "diffusemix": Format(folder_formats.read_diffusemix, folder_formats.is_diffusemix),
    "da-fusion": Format(folder_formats.read_da_fusion, folder_formats.is_da_fusion),
    "webdataset": Format(webdataset.read_shards, webdataset.has_shards),
    "images": Format(folder_formats.read_class_folders, Path.is_dir),
}
"""Formats in the order in which a folder is tried."""


def find_images(
    source: ImportFolder, format: str | None = None
) -> tuple[str, Iterator[FoundImage]]:
    """Return the format of a folder and an iterator over its images, of which there is one or more.

    Args:
        source: Folder or shard to read.
        format: A name in `FORMATS`; None takes the first that recognises the folder.

    Raises:
        CacheError: If there is no such folder, or no image in it.
    """
    root, name = source.root, source.name
    if not root.exists():
        raise CacheError(f"source must be a folder or a tar shard, got {name} which does not exist")
    if cache_exists(root):
        raise CacheError(f"source must hold images, got the cache {name}; merge joins caches")
    tried = FORMATS if format is None else [format]
    format = next((one for one in tried if FORMATS[one].recognises(root)), None)
    if format is None:
        raise CacheError(f"source must be of the format {' or '.join(tried)}, got {name}")
    images = FORMATS[format].read(source)
    first = next(images, None)
    if first is None:
        raise CacheError(f"source must hold images as {format}, got none in {name}")
    return format, chain([first], _errors_as_images(images, name))


def import_images(
    images: Iterator[FoundImage], store: Store, on_progress: Callable[[int], None]
) -> Report:
    """Put `images` into the store, batch by batch, and report those that cannot be read.

    If it is interrupted, the next call finds what is there and adds the rest.

    Args:
        images: From `find_images`.
        store: Store to fill.
        on_progress: Called with the number of images seen so far.

    Raises:
        CacheError: If none of the images can be read, or the store cannot be written.
    """
    batches = Batches(store, on_progress)
    try:
        for name, read in images:
            try:
                record = read()
            except CacheError as error:
                batches.report.leave_out(name, error)
            else:
                batches.add(record)
        batches.flush()
    except CacheFullError as error:
        batches.report.stop(error)
    if not batches.report.done + batches.report.present:
        name, reason = batches.report.problems[0]
        raise CacheError(f"source must hold an image that can be read, got none; {name}: {reason}")
    return batches.report


def check_merge(sources: Sequence[Store], target: Store) -> None:
    """Raise if the target of a merge is one of its sources.

    Raises:
        CacheError: If it is.
    """
    for source in sources:
        if source.path == target.path:
            raise CacheError(f"target must be another cache than the sources, got {target.path}")


def merge(sources: Sequence[Store], target: Store, on_progress: Callable[[int], None]) -> Report:
    """Add to `target` every record of `sources` whose key it does not have yet.

    Of two records with one key the first is kept, with its time, scores and image bytes. Then
    rejections, service counts and saliency maps follow (`Store.adopt`). Each batch is one
    transaction: if the merge is interrupted, the next one adds the rest.

    Args:
        sources: Stores to read, the preferred one first.
        target: Store to fill.
        on_progress: Called with the number of records seen so far.

    Raises:
        CacheError: If a source cannot be read at all or the target cannot be written.
    """
    batches = Batches(target, on_progress)
    try:
        for source in sources:
            _merge_records(source, batches)
        batches.flush()
        for source in sources:
            _merge_annotations(source, target, batches.report)
    except CacheFullError as error:
        batches.report.stop(error)
    return batches.report


@contextmanager
def removed_if_empty(store: Store) -> Iterator[None]:
    """Remove a cache that the block has created if the block fails before a record is in it."""
    was_there = cache_exists(store.path)
    missing = [path for path in (store.path, *store.path.parents) if not path.exists()]
    try:
        yield
    except BaseException:
        if not was_there and _is_unused(store):
            _remove(store.path, missing)
        raise


def _errors_as_images(images: Iterator[FoundImage], source: str) -> Iterator[FoundImage]:
    # A table or folder that breaks in the middle costs its rest, not what was read before.
    try:
        yield from images
    except CacheError as error:
        yield source, partial(refuse, str(error))


def _merge_records(source: Store, batches: Batches) -> None:
    for found in walk(source):
        if isinstance(found, Unreadable):
            batches.report.leave_out(f"{source.path} {found.key.hex()}", found.problem)
        else:
            batches.add(found)


def _merge_annotations(source: Store, target: Store, report: Report) -> None:
    adopted = target.adopt(source)
    report.beside["rejections"] += adopted.rejections
    report.beside["served_counts"] += adopted.served
    report.beside["saliency_maps"] += adopted.saliency_maps
    for name, problem in adopted.problems:
        report.leave_out(f"{source.path} {name}", problem)


def _is_unused(store: Store) -> bool:
    if not cache_exists(store.path):
        return True
    try:
        is_empty = not len(store)
    except CacheError:
        return False
    store.close()
    return is_empty and not is_in_use(store.path)


def _remove(path: Path, folders: list[Path]) -> None:
    for name in (DATA, LOCK, NOTE):
        (path / name).unlink(missing_ok=True)
    for folder in folders:
        with suppress(OSError):  # not made, or somebody has put something there meanwhile
            folder.rmdir()
