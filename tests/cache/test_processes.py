"""Processes that share a cache: workers of every start method, forks, killed writers."""

import multiprocessing
import threading

import numpy as np
import pytest
from cache_samples import FORK, in_child, keys_of

from cache import CacheError, Entry, Store, request_key
from cache.backend import environment


def entry(number):
    image = np.random.default_rng(number).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    return Entry({"method": "demo", "variant": number}, image)


def right_images(store, count):
    """Return for each of the newest records whether it has the pixels of its request."""
    last = store.position()
    records = [store.get(key) for _, key in store.tail(max(0, last - count))]
    return [np.array_equal(r.image, entry(r.request["variant"]).image) for r in records]


@pytest.mark.parametrize(
    "method",
    ["fork", pytest.param("spawn", marks=pytest.mark.slow), "forkserver"],
)
def test_workers_read_right_images_while_their_parent_writes(tmp_path, method):
    store = Store(tmp_path, codec="raw")
    store.put_many([entry(number) for number in range(8)])
    with multiprocessing.get_context(method).Pool(2) as pool:
        results = []
        for number in range(8, 40):
            results.append(pool.apply_async(right_images, (store, 8)))
            store.put_many([entry(number)])
        seen = [result.get(timeout=60) for result in results]
        assert pool.apply(store.position) == 40
    assert all(len(images) >= 8 and all(images) for images in seen)


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
        assert all(in_child(lambda: store.verify().is_clean) for _ in range(5))
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


def test_several_processes_create_one_cache_at_once(tmp_path, make_entries):
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


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.nightly)])
def test_a_killed_writer_loses_nothing_that_was_returned(tmp_path, make_entries, kills):
    store = Store(tmp_path, codec="raw")
    rng = np.random.default_rng(0)
    promised = 0
    for _ in range(kills):
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
    for offered in make_entries(promised):
        assert np.array_equal(store.get(request_key(offered.request)).image, offered.image)
