import multiprocessing
import os
import resource
import threading

import numpy as np
import pytest

from cache import CacheError, CacheFullError, Entry, Store, request_key
from cache.backend import environment

FORK = multiprocessing.get_context("fork")


def keys_of(entries):
    return [request_key(entry.request) for entry in entries]


def in_child(function):
    """What `function` returns in a forked process, or the error it raised there."""
    receiver, sender = FORK.Pipe(duplex=False)

    def run():
        try:
            sender.send(function())
        except Exception as error:
            sender.send(error)

    process = FORK.Process(target=run)
    process.start()
    sender.close()
    result = receiver.recv()
    process.join()
    if isinstance(result, Exception):
        raise result
    return result


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_workers_read_what_a_parent_with_an_open_store_wrote(tmp_path, make_entries, method):
    store = Store(tmp_path)
    entries = make_entries(8)
    store.put_many(entries)
    with multiprocessing.get_context(method).Pool(2) as pool:
        records = pool.map(store.get, keys_of(entries))
        store.put_many(make_entries(1, start=8))
        assert pool.apply(store.position) == 9
    for record, entry in zip(records, entries, strict=True):
        assert np.array_equal(record.image, entry.image)
    assert store.verify().is_clean


def test_parent_and_forked_child_both_go_on_writing(store, make_entries):
    store.put_many(make_entries(1))
    assert in_child(lambda: (store.put_many(make_entries(5, 1)), len(store))) == (5, 6)
    assert store.put_many(make_entries(4, 6)) == 4
    assert in_child(lambda: store.verify().is_clean)
    assert len(store) == store.position() == 10


def test_forks_are_safe_while_another_thread_writes(store, make_entries):
    store.put_many(make_entries(1))
    stop = threading.Event()
    failures = []

    def write():
        try:
            for variant in range(1, 10_000):
                store.put_many(make_entries(1, variant))
                if stop.is_set():
                    return
        except CacheError as error:
            failures.append(error)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        assert all(in_child(lambda: store.verify().is_clean) for _ in range(10))
    finally:
        stop.set()
        thread.join()
    assert failures == []
    assert store.verify().is_clean


def test_a_fork_inside_a_transaction_is_refused_in_the_child_and_harmless_here(store, make_entries):
    store.put_many(make_entries(1))
    with (
        store._environment.transaction(),
        pytest.raises(CacheError, match="start worker processes by spawn or forkserver"),
    ):
        in_child(store.position)
    assert store.put_many(make_entries(2)) == 1
    assert in_child(store.position) == 2


def test_a_fork_does_not_wait_for_ever(store, make_entries, monkeypatch):
    monkeypatch.setattr(environment, "FORK_PATIENCE_S", 0.05)
    store.put_many(make_entries(1))
    inside, leave = threading.Event(), threading.Event()

    def linger():
        with store._environment.transaction():
            inside.set()
            leave.wait()

    thread = threading.Thread(target=linger)
    thread.start()
    inside.wait()
    try:
        with pytest.raises(CacheError, match="while this process was forked"):
            in_child(store.position)
        assert store.position() == 1
    finally:
        leave.set()
        thread.join()


def test_several_processes_make_one_cache_at_once(tmp_path, make_entries):
    store = Store(tmp_path / "cache")
    start = FORK.Barrier(4)

    def write(first):
        start.wait()
        store.put_many(make_entries(3, first))

    processes = [FORK.Process(target=write, args=(3 * rank,)) for rank in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert len(store) == 12
    assert store.verify().is_clean


def test_a_killed_writer_loses_nothing_that_was_returned(tmp_path, make_entries):
    store = Store(tmp_path, codec="raw")
    rng = np.random.default_rng(0)
    promised = 0
    for _ in range(5):
        told, tell = FORK.Pipe(duplex=False)

        def write(start=promised, tell=tell):
            for first in range(start, start + 10_000, 4):
                store.put_many(make_entries(4, first))
                tell.send(first + 4)

        process = FORK.Process(target=write)
        process.start()
        tell.close()
        for _ in range(rng.integers(1, 12)):
            promised = told.recv()
        process.kill()
        process.join()
        while told.poll():
            try:
                promised = told.recv()
            except EOFError:
                break
        assert all(store.contains(keys_of(make_entries(promised))))
        assert store.verify().is_clean
    for entry in make_entries(promised):
        assert np.array_equal(store.get(request_key(entry.request)).image, entry.image)


def test_a_full_disk_is_a_worded_error_and_keeps_what_is_committed(tmp_path, make_entries):
    store = Store(tmp_path, codec="raw")
    store.put_many(make_entries(3))
    large = [
        Entry({"large": number}, np.full((200, 200, 3), number, np.uint8)) for number in range(20)
    ]

    def fill():
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, resource.RLIM_INFINITY))
        with pytest.raises(CacheFullError, match="the disk is full, or a quota"):
            store.put_many(large)
        return store.put_many(make_entries(1, start=3)), store.verify().is_clean

    assert in_child(fill) == (1, True)
    assert store.contains(keys_of(make_entries(4) + large)) == [True] * 4 + [False] * 20
    assert store.put_many(large) == 20


def test_slots_of_dead_readers_are_cleared_when_a_cache_is_opened(store):
    store.open()
    is_open, is_over = FORK.Event(), FORK.Event()

    def keep_open():  # LMDB starts afresh only where nobody else has the cache open
        store.open()
        is_open.set()
        is_over.wait()

    def die_while_reading():
        with store._environment.transaction():
            os._exit(0)

    keeper, victim = FORK.Process(target=keep_open), FORK.Process(target=die_while_reading)
    keeper.start()
    is_open.wait()
    victim.start()
    victim.join()
    readers = store.open()._environment._opened.handle.readers()
    is_over.set()
    keeper.join()
    assert str(victim.pid) not in readers
