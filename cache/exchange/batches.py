"""Records into a cache, many to a transaction."""

from collections.abc import Callable

from cache.exchange.report import Report
from cache.record import Record
from cache.store import Store

_RECORDS, _BYTES = 256, 2**25


class Batches:
    """Takes records one by one and puts them by the batch, each of which is one transaction.

    Cut short, the store is whole and holds a part; done again, the rest is added.
    """

    def __init__(self, store: Store, tell: Callable[[int], None]) -> None:
        """Start for `store`; `tell` is called with how many were looked at."""
        self.report = Report()
        self._store, self._tell = store, tell
        self._waiting: list[Record] = []
        self._bytes = 0

    def add(self, record: Record) -> None:
        """Put `record` sooner or later."""
        self._waiting.append(record)
        self._bytes += len(record.image_bytes)
        if len(self._waiting) >= _RECORDS or self._bytes >= _BYTES:
            self.flush()

    def flush(self) -> None:
        """Put what waits."""
        if not self._waiting:
            return
        there = self._store.contains([record.key for record in self._waiting])
        fresh = [r for r, is_there in zip(self._waiting, there, strict=True) if not is_there]
        added = self._store.put_records(fresh) if fresh else 0
        self.report.done += added
        self.report.present += len(self._waiting) - added
        self._waiting, self._bytes = [], 0
        self._tell(self.report.seen)
