"""A thread that encodes and stores images, so that a generator waits for neither."""

import atexit
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Self

from cache.codecs import checked_image
from cache.errors import CacheError, CacheFullError
from cache.keys import canonical_bytes
from cache.record import Entry, encode_classes
from cache.store import Store


class Writer:
    """Stores entries in the background, many in a transaction.

    An accepted entry is only in memory until its batch is written: a crash loses it, and its claim
    ends with the process. If writing fails, the thread ends and every later call raises the error;
    `unwritten` then returns the entries that are not in the store.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> with tempfile.TemporaryDirectory() as folder, Store(folder) as store:
        ...     with Writer(store) as writer:
        ...         writer.put(Entry({"method": "demo"}, np.zeros((8, 8, 3), np.uint8)))
        ...     len(store), writer.written
        (1, 1)
    """

    def __init__(
        self, store: Store, *, batch_size: int = 64, max_wait_s: float = 0.25, max_queued: int = 256
    ) -> None:
        """Start the thread.

        Args:
            store: The store to write to; it stays open when the writer is closed.
            batch_size: Most entries in one transaction.
            max_wait_s: How long an entry waits for others to share its transaction, s.
            max_queued: Number of unwritten entries at which `put` waits.

        Raises:
            CacheError: If one of the numbers is out of its range.
        """
        if not 1 <= batch_size <= max_queued:
            raise CacheError(
                f"batch_size must be 1 to max_queued, got {batch_size} of {max_queued}"
            )
        if not max_wait_s >= 0:
            raise CacheError(f"max_wait_s must be at least 0, got {max_wait_s}")
        self._store = store
        self._batch_size, self._max_wait_s, self._max_queued = batch_size, max_wait_s, max_queued
        self._queue: deque[tuple[float, Entry]] = deque()
        self._accepted = self._done = self._wanted = self._written = 0
        self._error: Exception | None = None
        self._is_closed = False
        self._changed = threading.Condition()
        self._pid = os.getpid()
        # A daemon thread keeps no process alive whose main thread has died.
        self._thread = threading.Thread(target=self._run, name="cache writer", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    @property
    def written(self) -> int:
        """Number of records added; entries that the store had already are not counted."""
        return self._written

    def put(self, entry: Entry) -> None:
        """Accept a copy of `entry`; wait only while the queue is full.

        Raises:
            CacheError: If it cannot be stored, or an earlier entry could not be written. In both
                cases it was not accepted.
        """
        scores = {name: float(score) for name, score in entry.scores.items()}
        image, classes = checked_image(entry.image).copy(), dict(entry.classes)
        copy = Entry(dict(entry.request), image, scores, classes)
        for fields in (copy.request, scores):
            canonical_bytes(fields)  # refused here, before its whole batch would be
        encode_classes(classes)
        self._check_process()
        with self._changed:
            self._wait_for(lambda: len(self._queue) < self._max_queued)
            if self._is_closed:
                raise CacheError("writer must be open, got a closed one; make another")
            self._queue.append((time.monotonic(), copy))
            self._accepted += 1
            self._changed.notify_all()

    def flush(self) -> None:
        """Wait until everything accepted before this call is in the store.

        Raises:
            CacheError: If some of it could not be written.
        """
        self._check_process()
        with self._changed:
            self._wanted = wanted = self._accepted
            self._changed.notify_all()
            self._wait_for(lambda: self._done >= wanted)

    def close(self) -> None:
        """Write everything accepted and end the thread. May be called again.

        Raises:
            CacheError: If some of it could not be written.
        """
        if self._pid != os.getpid():
            return  # the thread and its queue are in another process
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._thread.join()
        atexit.unregister(self.close)
        if self._error is not None:
            raise self._error

    def unwritten(self) -> list[Entry]:
        """Return the accepted entries that are not in the store yet, in order."""
        with self._changed:
            return [entry for _, entry in self._queue]

    def __enter__(self) -> Self:
        """Return the writer."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the writer."""
        self.close()

    def _check_process(self) -> None:
        if self._pid != os.getpid():
            raise CacheError("writer must be used in the process that made it; make another here")

    def _wait_for(self, is_met: Callable[[], bool]) -> None:
        self._changed.wait_for(lambda: self._error is not None or is_met())
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        size = self._batch_size
        try:
            while batch := self._next_batch(size):
                try:
                    added = self._store.put_many(batch)
                except CacheFullError:
                    if len(batch) == 1:
                        raise
                    size = len(batch) // 2  # store as much as still fits
                    continue
                size = min(2 * size, self._batch_size)
                self._note(len(batch), added)
        except Exception as error:  # the caller must hear of any error
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _next_batch(self, size: int) -> list[Entry]:
        with self._changed:
            while not self._is_due():
                # Without an entry there is no deadline; wait for a change.
                deadline = self._queue[0][0] + self._max_wait_s if self._queue else None
                wait_s = None if deadline is None else max(0.0, deadline - time.monotonic())
                self._changed.wait(wait_s)
            return [entry for _, entry in islice(self._queue, size)]

    def _is_due(self) -> bool:
        if self._is_closed or not self._queue:
            return self._is_closed
        is_old = time.monotonic() >= self._queue[0][0] + self._max_wait_s
        return is_old or self._done < self._wanted or len(self._queue) >= self._batch_size

    def _note(self, count: int, added: int) -> None:
        with self._changed:
            for _ in range(count):
                self._queue.popleft()
            self._done += count
            self._written += added
            self._changed.notify_all()
