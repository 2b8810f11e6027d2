"""One short transaction: begun, committed or undone, and LMDB's errors in our words."""

import time
from typing import TYPE_CHECKING

import lmdb

from cache.handle import begin, worded
from cache.soundness import note_sound
from cache.tables import Tables, Transaction

if TYPE_CHECKING:
    from cache.environment import Environment

READERS_CHECKED_EVERY_S = 5.0
"""How often a writer clears the slots of killed readers, which keep old pages from being reused."""


class ShortTransaction:
    """What `Environment.transaction` gives to `with`; a generator would take twice as long."""

    __slots__ = ("_buffers", "_environment", "_opened", "_txn", "_write")

    def __init__(self, environment: "Environment", write: bool, buffers: bool) -> None:
        """Note what for; nothing happens before `with`."""
        self._environment, self._write, self._buffers = environment, write, buffers

    def __enter__(self) -> tuple[Transaction, Tables]:
        environment = self._environment
        try:
            self._opened = opened = environment.enter(self._write)
            try:
                if self._write:
                    self._clear_dead_readers(opened.handle)
                self._txn = begin(opened.handle, self._write, self._buffers)
            except BaseException:
                environment.leave()
                raise
        except lmdb.Error as error:
            raise worded(environment.path, error) from error
        return self._txn, opened.tables

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        environment = self._environment
        try:
            if error is None and self._write:
                self._txn.commit()
                note_sound(environment.path, durable=self._opened.sync)
            self._txn.abort()  # nothing after a commit
        except lmdb.Error as failure:
            self._txn.abort()
            raise worded(environment.path, failure) from failure
        finally:
            environment.leave()
        if isinstance(error, lmdb.Error):
            raise worded(environment.path, error) from error

    def _clear_dead_readers(self, handle: lmdb.Environment) -> None:
        environment = self._environment
        if time.monotonic() - environment.readers_checked >= READERS_CHECKED_EVERY_S:
            handle.reader_check()
            environment.readers_checked = time.monotonic()
