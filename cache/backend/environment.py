"""The LMDB environment of a directory in this process, and its short transactions.

An environment that a fork has inherited reads and writes wrong data without an error, and LMDB
refuses a second one on the same files. So all stores of a directory share one, which is opened
late, and every transaction passes a gate. A fork waits at the gate and closes what is open; parent
and child open it again when they next need it.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import lmdb

from cache.backend.directory import DataFile
from cache.backend.opening import begin, note_sound, open_cache, worded
from cache.backend.tables import Tables, Transaction
from cache.errors import CacheError

READERS_CHECKED_EVERY_S = 5.0
"""Time between clearings of the slots of killed readers, which keep old pages from reuse."""
FORK_PATIENCE_S = 30.0
"""Longest time that a fork waits for the transactions of other threads."""

_lock = threading.RLock()
_gate = threading.Condition(_lock)
"""Threads wait at the condition, but enter by its lock, which takes a third of the time."""
_environments: dict[Path, "Environment"] = {}
_forks = 0
"""Number of threads that are about to fork."""
_waiting = 0
"""Number of threads at the gate. Notifying nobody takes as long as entering, so it is avoided."""


def attach(path: Path, *, writable: bool, sync: bool = True) -> "Environment":
    """Return the environment of a directory in this process and count one more user of it.

    Stores share it: if one of them wants commits to wait for the disk, all commits do.
    """
    with _gate:
        environment = _environments.setdefault(path, Environment(path))
        environment.users += 1
        environment.wants_writing |= writable
        environment.wants_sync |= sync
        return environment


def detach(environment: "Environment") -> None:
    """Count one user less; close the environment after the last one."""
    with _gate:
        environment.users -= 1
        if environment.users == 0:
            _environments.pop(environment.path, None)
            environment.close()


class Environment:
    """The LMDB environment of one directory, shared by the stores and threads of this process."""

    def __init__(self, path: Path) -> None:
        """Note the path; nothing is opened or made."""
        self.path = path
        self.users = 0
        self.wants_writing = self.wants_sync = self._is_reserved = False
        self._opened: Opened | None = None
        self.readers_checked = 0.0
        self._running: list[int] = []

    def transaction(self, *, write: bool = False, buffers: bool = False) -> "ShortTransaction":
        """Return a context manager for a transaction that is undone by an exception.

        Inside it no code of a caller, no import and no logging may run: a fork in another thread
        may be waiting for it while it holds their locks.

        Args:
            write: Whether it may change something.
            buffers: Whether values are LMDB's own pages, which end with it, instead of copies.

        Raises:
            CacheError: If the directory cannot be used or LMDB fails.
            CacheFullError: If the disk is full.
        """
        return ShortTransaction(self, write, buffers)

    def open(self) -> None:
        """Open the environment now, so that a path that cannot be used is reported early."""
        try:
            self.enter(self.wants_writing)
            self.leave()
        except lmdb.Error as error:
            raise worded(self.path, error) from error

    def close(self) -> None:
        """Close the environment when no transaction runs; the next transaction opens it again."""
        with _gate:
            _wait_until(lambda: not self._running)
            self._shut()

    @contextmanager
    def reserved(self) -> Iterator[None]:
        """Keep the environment closed; transactions of other threads wait for the end."""
        with _gate:
            _wait_until(lambda: not (_forks or self._running or self._is_reserved))
            self._shut()
            self._is_reserved = True
        try:
            yield
        finally:
            with _gate:
                self._is_reserved = False
                _gate.notify_all()

    def enter(self, write: bool) -> "Opened":
        """Pass the gate and open what is not open. The caller must `leave` afterwards."""
        with _lock:
            if write or _forks or self._is_reserved:
                _wait_until(lambda: self._can_admit(write))
            opened = self._opened
            if opened is None or write or opened.pid != os.getpid():
                opened = self._prepare(write)
            else:
                opened.file.check()
            self._running.append(threading.get_ident())
            return opened

    def leave(self) -> None:
        """End what `enter` began."""
        thread = threading.get_ident()
        with _lock:
            if thread in self._running:  # not in a child that was forked inside the transaction
                self._running.remove(thread)
            if _waiting:
                _gate.notify_all()

    def _can_admit(self, write: bool) -> bool:
        if _forks or self._is_reserved:
            return False
        # A writer may need another handle than the one that is open: let the readers end first.
        return not write or self._suits_writer() or not self._running

    def _suits_writer(self) -> bool:
        opened = self._opened
        return opened is not None and opened.writable and opened.sync >= self.wants_sync

    def _prepare(self, write: bool) -> "Opened":
        if self._opened is not None and self._opened.pid != os.getpid():
            raise CacheError(
                f"cache {self.path} was in use while this process was forked from another; "
                "start worker processes by spawn or forkserver"
            )
        if write and not self._suits_writer():
            self._shut()
        if self._opened is None:
            self._opened = Opened.at(self.path, self.wants_writing, self.wants_sync)
        else:
            self._opened.file.check(write=write)
        return self._opened

    def _shut(self) -> None:
        # An inherited one stays untouched: closing it would free the reader slots of the parent.
        if self._opened is not None and self._opened.pid == os.getpid():
            self._opened.close()
            self._opened = None

    def _shut_for_fork(self, deadline: float) -> None:
        thread = threading.get_ident()
        _wait_until(
            lambda: all(running == thread for running in self._running),
            timeout=max(0.0, deadline - time.monotonic()),
        )
        if not self._running:
            self._shut()


@dataclass(frozen=True, slots=True)
class Opened:
    """The open handles of a directory."""

    handle: lmdb.Environment
    tables: Tables
    file: DataFile
    pid: int
    writable: bool
    sync: bool
    """Whether a commit waits for the disk."""

    @classmethod
    def at(cls, path: Path, writable: bool, sync: bool) -> "Opened":
        """Open the cache at `path`; create it if it is missing and `writable`."""
        handle, tables = open_cache(path, writable=writable, sync=sync)
        return cls(handle, tables, DataFile(path), os.getpid(), writable, sync)

    def close(self) -> None:
        """Close the files."""
        self.handle.close()
        self.file.close()


class ShortTransaction:
    """The context manager of `Environment.transaction`. A generator would take twice as long."""

    __slots__ = ("_buffers", "_environment", "_opened", "_txn", "_write")

    def __init__(self, environment: Environment, write: bool, buffers: bool) -> None:
        """Note the arguments; nothing happens before `with`."""
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
            self._txn.abort()  # does nothing after a commit
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


def _wait_until(is_so: Callable[[], bool], timeout: float | None = None) -> None:
    global _waiting
    _waiting += 1
    try:
        _gate.wait_for(is_so, timeout)
    finally:
        _waiting -= 1


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
    global _lock, _gate, _forks, _waiting
    _lock = threading.RLock()  # the threads that waited at the old one are not in this process
    _gate = threading.Condition(_lock)
    _forks = _waiting = 0
    for environment in list(_environments.values()):
        environment._running.clear()
        environment._is_reserved = False


os.register_at_fork(
    before=_before_fork,
    after_in_parent=_after_fork_in_parent,
    after_in_child=_after_fork_in_child,
)
