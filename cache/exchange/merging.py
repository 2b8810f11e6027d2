"""Several caches into one: records with their bytes as they are, and what is kept beside them."""

from collections.abc import Callable, Sequence

from cache.errors import CacheError, CacheFullError
from cache.exchange.batches import Batches
from cache.exchange.report import Report
from cache.selection import Unreadable, walk
from cache.store import Store


def merge(sources: Sequence[Store], target: Store, tell: Callable[[int], None]) -> Report:
    """Add to `target` every record of `sources` whose key it does not have yet.

    The first record of a key is kept, with its time, scores and image bytes; then comes what
    `Store.adopt` takes over. Each batch is one transaction: cut short, the target is whole and
    holds a part; the next call adds the rest. `tell` is called with how many were looked at.

    Raises:
        CacheError: If a cache cannot be read at all or the target cannot be written.
    """
    batches = Batches(target, tell)
    try:
        for source in sources:
            _add_records(source, batches)
        batches.flush()
        for source in sources:
            _adopt(source, target, batches.report)
    except CacheFullError as error:
        batches.report.stop(error)
    return batches.report


def _add_records(source: Store, batches: Batches) -> None:
    for found in walk(source):
        if isinstance(found, Unreadable):
            batches.report.leave_out(f"{source.path} {found.key.hex()}", found.problem)
        else:
            batches.add(found)


def _adopt(source: Store, target: Store, report: Report) -> None:
    adopted = target.adopt(source)
    report.beside["rejections"] += adopted.rejections
    report.beside["served_counts"] += adopted.served
    report.beside["saliency_maps"] += adopted.saliency_maps
    for name, problem in adopted.problems:
        report.leave_out(f"{source.path} {name}", problem)


def check_merge(sources: Sequence[Store], target: Store) -> None:
    """Refuse a target that is one of the sources.

    Raises:
        CacheError: If it is.
    """
    for source in sources:
        if source.path == target.path:
            raise CacheError(f"target must be another cache than the sources, got {target.path}")
