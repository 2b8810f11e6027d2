"""Several caches into one, record by record, their bytes as they are."""

from collections.abc import Callable, Sequence

from cache.errors import CacheError
from cache.exchange.batches import Batches
from cache.exchange.report import Report
from cache.selection import Unreadable, walk
from cache.store import Store


def merge(sources: Sequence[Store], target: Store, tell: Callable[[int], None]) -> Report:
    """Add to `target` every record of `sources` whose key it does not have yet.

    The first record of a key is kept, with its time, scores and image bytes. Each batch is one
    transaction: cut short, the target is whole and holds a part; the next call adds the rest.
    `tell` is called with how many were looked at.

    Raises:
        CacheError: If a cache cannot be read at all or the target cannot be written.
    """
    batches = Batches(target, tell)
    for source in sources:
        for found in walk(source):
            if isinstance(found, Unreadable):
                batches.report.leave_out(f"{source.path} {found.key.hex()}", found.problem)
            else:
                batches.add(found)
    batches.flush()
    return batches.report


def check_merge(sources: Sequence[Store], target: Store) -> None:
    """Refuse a target that is one of the sources.

    Raises:
        CacheError: If it is.
    """
    for source in sources:
        if source.path == target.path:
            raise CacheError(f"target must be another cache than the sources, got {target.path}")
