import fcntl
import os
import time

import numpy as np
import pytest
from cache_samples import FORK, keys_of

from cache import CacheError, CacheFullError, Entry, Oldest, Owner, Store, request_key
from cache.backend import compaction, directory, environment, opening


def entries(count, start=0):
    return [
        Entry({"variant": v}, np.full((60, 60, 3), v % 251, np.uint8))
        for v in range(start, start + count)
    ]


@pytest.fixture
def emptied(tmp_path):
    """An open cache of 200 records, 190 of which were evicted."""
    with Store(tmp_path / "cache", codec="raw") as store:
        store.put_many(entries(200))
        store.evict(Oldest(), count=190)
        yield store


def test_compacting_gives_the_disk_back_what_eviction_freed(emptied):
    before = emptied.stats()["file_bytes"]
    freed = emptied.compact()
    after = emptied.stats()["file_bytes"]
    assert freed == before - after
    assert after < before / 5
    assert [key for _, key in emptied.tail()] == keys_of(entries(10, 190))
    assert emptied.verify().is_clean
    assert {path.name for path in emptied.path.iterdir()} == {"data.mdb", "lock.mdb", "sound"}


def test_a_compacted_cache_is_written_on(emptied):
    emptied.compact()
    assert emptied.put_many(entries(5, 300)) == 5
    assert emptied.position() == 205
    assert emptied.compact() >= 0
    assert emptied.verify().is_clean


def test_the_old_copy_of_a_killed_process_does_no_harm(emptied):
    (emptied.path / directory.COMPACT).write_bytes(b"half of a copy")
    emptied.close()
    assert len(emptied) == 10
    assert emptied.compact() > 0
    assert len(emptied) == 10


def in_another_process(target, *arguments):
    process = FORK.Process(target=target, args=arguments)
    process.start()
    return process


def keep_open(path, is_open, is_over, readonly):
    with Store(path, readonly=readonly) as store:
        store.open()
        is_open.set()
        is_over.wait()


@pytest.mark.parametrize("readonly", [True, False])
def test_a_cache_that_another_process_has_open_is_not_compacted(emptied, readonly):
    is_open, is_over = FORK.Event(), FORK.Event()
    keeper = in_another_process(keep_open, emptied.path, is_open, is_over, readonly)
    is_open.wait()
    try:
        with pytest.raises(CacheError, match="is open in another process; end that"):
            emptied.compact()
        assert len(emptied) == 10
    finally:
        is_over.set()
        keeper.join()
    assert emptied.compact() > 0


def hold_copy(path, is_held, is_over):
    file = os.open(path, os.O_RDWR | os.O_CREAT)
    fcntl.lockf(file, fcntl.LOCK_EX)
    is_held.set()
    is_over.wait()


def test_a_cache_that_is_being_compacted_does_not_open(emptied):
    emptied.close()
    is_held, is_over = FORK.Event(), FORK.Event()
    holder = in_another_process(hold_copy, emptied.path / directory.COMPACT, is_held, is_over)
    is_held.wait()
    try:
        for readonly in (True, False):
            with pytest.raises(CacheError, match="is being compacted by another process"):
                Store(emptied.path, readonly=readonly).open()
    finally:
        is_over.set()
        holder.join()
    assert len(emptied) == 10


def compact_slowly(path, is_alone, may_copy):
    copy = compaction._copy

    def wait_and_copy(*arguments):
        is_alone.set()
        may_copy.wait()
        copy(*arguments)

    compaction._copy = wait_and_copy
    Store(path).compact()


def open_late(path, is_opening, is_written, readonly, results):
    opening.check_not_compacting = lambda _: None  # as if it had looked just before
    environment._environments.clear()  # of the parent, which writes
    store = Store(path, codec="raw", readonly=readonly)
    is_opening.set()
    store.open()
    results.put(len(store))
    is_written.wait()
    results.put(len(store))
    if not readonly:
        store.put_many(entries(1, 500))
    results.put(store.position())


@pytest.mark.parametrize("readonly", [True, False])
@pytest.mark.parametrize("commits", [0, 1])  # LMDB's two meta pages take turns
def test_a_process_that_opens_during_a_compaction_works_on_the_new_file(emptied, readonly, commits):
    for number in range(commits):
        emptied.claim([request_key({"claimed": number})], Owner.current())
    emptied.close()
    is_alone, may_copy, is_opening, is_written = (FORK.Event() for _ in range(4))
    results = FORK.Queue()
    compactor = in_another_process(compact_slowly, emptied.path, is_alone, may_copy)
    is_alone.wait()
    opener = in_another_process(open_late, emptied.path, is_opening, is_written, readonly, results)
    is_opening.wait()
    time.sleep(0.2)  # let it reach LMDB's lock; if it is slower, only the test is weaker
    may_copy.set()
    assert results.get(timeout=30) == 10
    emptied.put_many(entries(1, 400))
    is_written.set()
    assert results.get(timeout=30) == 11
    assert results.get(timeout=30) == emptied.position() == 201 + (not readonly)
    compactor.join()
    opener.join()
    assert emptied.verify().is_clean


def test_a_disk_without_room_for_the_copy_is_reported_first(emptied, monkeypatch):
    before = (emptied.path / "data.mdb").stat()
    free = os.statvfs_result((4096, 4096, 10, 1, 1, 0, 0, 0, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda _: free)
    with pytest.raises(CacheFullError, match="needs .* bytes of disk, 4096 are free"):
        emptied.compact()
    assert os.path.samestat(before, (emptied.path / "data.mdb").stat())
    assert len(emptied) == 10


def test_a_compaction_that_fails_leaves_the_cache_as_it_was(emptied, monkeypatch):
    def fail(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(compaction.os, "fsync", fail)
        with pytest.raises(KeyboardInterrupt):
            emptied.compact()
    assert {path.name for path in emptied.path.iterdir()} == {"data.mdb", "lock.mdb", "sound"}
    assert len(emptied) == 10
    assert emptied.compact() > 0


def test_a_readonly_store_is_not_compacted(emptied):
    with pytest.raises(CacheError, match="store must not be readonly"):
        Store(emptied.path, readonly=True).compact()
