"""LMDB in this process: one environment a directory, opened late, never carried over a fork.

An environment inherited by `fork` reads and writes wrong data without an error, and LMDB refuses a
second one on the same files. So all stores of a directory share one, every transaction passes a
gate, and a fork first waits at that gate and closes what is open; parent and child open anew when
they next need it.
"""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lmdb

from cache.errors import CacheError
from cache.handle import begin, worded
from cache.location import DATA
from cache.opening import open_cache
from cache.soundness import note_sound
from cache.tables import Tables, Transaction

FORK_PATIENCE_S = 30.0
"""How long a fork waits for the transactions of other threads."""
READERS_CHECKED_EVERY_S = 5.0
"""How often a writer clears the slots of killed readers, which keep old pages from being reused."""

_gate = threading.Condition()
_environments: dict[Path, "Environment"] = {}
_forks = 0
"""Threads that are about to fork."""


class Environment:
    """The LMDB environment of one directory in this process, shared by its stores and threads."""

    def __init__(self, path: Path) -> None:
        """Note the path; nothing is opened or made."""
        self.path = path
        self.users = 0
        self.wants_writing = self.wants_sync = False
        self._handle: lmdb.Environment | None = None
        self._tables: Tables | None = None
        self._is_writable = self._is_synced = self._is_reserved = False
        self._pid = 0
        self._data = str(path / DATA)
        self._seen = (0, 0)
        self._readers_checked = 0.0
        self._running: list[int] = []

    @contextmanager
    def transaction(
        self, *, write: bool = False, buffers: bool = False
    ) -> Iterator[tuple[Transaction, Tables]]:
        """One short transaction, committed at the end, undone by an exception.

        Inside it no code of a caller, no import and no logging runs: a fork in another thread may
        be waiting for it with those locks held.

        Args:
            write: Whether it may change something.
            buffers: Whether values come as LMDB's own pages, which end with it, and not as copies.

        Raises:
            CacheError: If the directory cannot be used or LMDB fails.
            CacheFullError: If the disk is full.
        """
        try:
            handle, tables = self._enter(write)
            try:
                if write:
                    self._clear_dead_readers(handle)
                txn = begin(handle, write, buffers)
                try:
                    yield txn, tables
                    txn.commit()
                finally:
                    txn.abort()  # nothing after a commit
                if write:
                    note_sound(self.path, durable=self._is_synced)
            finally:
                self._leave()
        except lmdb.Error as error:
            raise worded(self.path, error) from error

    def open(self) -> None:
        """Open the environment now, so that a path that cannot be used is said at once."""
        try:
            self._enter(self.wants_writing)
            self._leave()
        except lmdb.Error as error:
            raise worded(self.path, error) from error

    def close(self) -> None:
        """Close it when no transaction runs; the next one opens it again."""
        with _gate:
            _gate.wait_for(lambda: not self._running)
            self._shut()

    @contextmanager
    def reserved(self) -> Iterator[None]:
        """Keeps it closed in this process; transactions of other threads wait for the end."""
        with _gate:
            _gate.wait_for(lambda: not (_forks or self._running or self._is_reserved))
            self._shut()
            self._is_reserved = True
        try:
            yield
        finally:
            with _gate:
                self._is_reserved = False
                _gate.notify_all()

    def _enter(self, write: bool) -> tuple[lmdb.Environment, Tables]:
        with _gate:
            while _forks or not self._can_admit(write):
                _gate.wait()
            opened = self._opened(write)
            self._running.append(threading.get_ident())
            return opened

    def _leave(self) -> None:
        thread = threading.get_ident()
        with _gate:
            if thread in self._running:  # not in a child that was forked right here
                self._running.remove(thread)
            _gate.notify_all()

    def _can_admit(self, write: bool) -> bool:
        # Another handle is needed to write through what was opened otherwise: let readers end.
        return not self._is_reserved and (self._suits(write) or not self._running)

    def _suits(self, write: bool) -> bool:
        return not write or (self._is_writable and self._is_synced >= self.wants_sync)

    def _opened(self, write: bool) -> tuple[lmdb.Environment, Tables]:
        if self._handle is not None and self._pid != os.getpid():
            raise CacheError(
                f"cache {self.path} was in use while this process was forked from another; "
                "start worker processes by spawn or forkserver"
            )
        if not self._suits(write):
            self._shut()
        if self._handle is None or self._tables is None:
            self._open()
        else:
            self._check_same_file()
        assert self._handle is not None
        assert self._tables is not None
        return self._handle, self._tables

    def _open(self) -> None:
        writable, sync = self.wants_writing, self.wants_sync
        self._handle, self._tables = open_cache(self.path, writable=writable, sync=sync)
        self._is_writable, self._is_synced = writable, sync
        self._pid = os.getpid()
        found = os.stat(self._data)  # noqa: PTH116
        self._seen = found.st_ino, found.st_size

    def _clear_dead_readers(self, handle: lmdb.Environment) -> None:
        now = time.monotonic()
        if now - self._readers_checked >= READERS_CHECKED_EVERY_S:
            handle.reader_check()
            self._readers_checked = now

    def _check_same_file(self) -> None:
        # What LMDB has mapped must be there: a page cut off kills the process that reads it, and
        # records written to a removed file are lost.
        inode, size = self._seen
        try:
            found = os.stat(self._data)  # noqa: PTH116  # a Path takes as long again
        except OSError:
            found = None
        if found is None or found.st_ino != inode or found.st_size < size:
            raise CacheError(
                f"cache {self.path} was removed, replaced or cut short while it was open; "
                "put it back, or close the store to start with what is there now"
            )
        self._seen = inode, found.st_size

    def _shut(self) -> None:
        # An inherited one stays untouched: closing it would free the reader slots of the parent.
        if self._handle is not None and self._pid == os.getpid():
            self._handle.close()
            self._handle = self._tables = None
            self._is_writable = False

    def _shut_for_fork(self, deadline: float) -> None:
        thread = threading.get_ident()
        _gate.wait_for(
            lambda: all(running == thread for running in self._running),
            timeout=max(0.0, deadline - time.monotonic()),
        )
        if not self._running:
            self._shut()


def attach(path: Path, *, writable: bool, sync: bool = True) -> Environment:
    """The environment of that directory in this process, counted as used once more.

    Stores share it: if one of them wants commits to wait for the disk, all get that.
    """
    with _gate:
        environment = _environments.setdefault(path, Environment(path))
        environment.users += 1
        environment.wants_writing |= writable
        environment.wants_sync |= sync
        return environment


def detach(environment: Environment) -> None:
    """Count one user less; the last one closes it."""
    with _gate:
        environment.users -= 1
        if environment.users == 0:
            _environments.pop(environment.path, None)
            environment.close()


def _before_fork() -> None:
    global _forks
    _gate.acquire()
    _forks += 1
    deadline = time.monotonic() + FORK_PATIENCE_S
    for environment in list(_environments.values()):
        environment._shut_for_fork(deadline)


def _after_fork_in_parent() -> None:
    global _forks
    _forks -= 1
    _gate.notify_all()
    _gate.release()


def _after_fork_in_child() -> None:
    global _gate, _forks
    _gate = threading.Condition()  # the threads that waited at the old one are not in this process
    _forks = 0
    for environment in list(_environments.values()):
        environment._running.clear()
        environment._is_reserved = False


os.register_at_fork(
    before=_before_fork,
    after_in_parent=_after_fork_in_parent,
    after_in_child=_after_fork_in_child,
)
