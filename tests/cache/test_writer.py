"""The writer thread on a real store, whose `put_many` is wrapped if it must fail or be slow."""

import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from cache_samples import FORK, keys_of

from cache import CacheError, CacheFullError, Entry, Store, Writer, request_key

FOREVER_S = 1e6


class Held:
    """A `put_many` that waits until it is released and notes the sizes of its batches."""

    def __init__(self, store, monkeypatch):
        self.batches, self.started, self.go = [], threading.Semaphore(0), threading.Semaphore(0)
        self._put_many = store.put_many
        monkeypatch.setattr(store, "put_many", self)

    def __call__(self, entries):
        self.started.release()
        assert self.go.acquire(timeout=60)
        self.batches.append(len(entries))
        return self._put_many(entries)

    def release(self):
        self.go.release(1000)


@pytest.fixture
def held(store, monkeypatch):
    return Held(store, monkeypatch)


def test_everything_accepted_is_in_the_store_in_order_after_close(store, make_entries):
    entries = make_entries(60)
    with Writer(store, batch_size=16, max_queued=32) as writer:
        for entry in entries:
            writer.put(entry)
    assert [key for _, key in store.tail()] == keys_of(entries)
    assert (writer.written, writer.unwritten()) == (60, [])
    assert store.verify().is_clean


def test_put_returns_while_the_store_is_busy(store, make_entries, held):
    with Writer(store, batch_size=1) as writer:
        for entry in make_entries(5):
            writer.put(entry)
        assert held.started.acquire(timeout=60)
        assert (len(store), len(writer.unwritten()), writer.written) == (0, 5, 0)
        held.release()
    assert len(store) == 5


def test_entries_accepted_while_the_store_is_busy_share_a_transaction(store, make_entries, held):
    with Writer(store, batch_size=4, max_wait_s=0) as writer:
        first, *others = make_entries(10)
        writer.put(first)
        assert held.started.acquire(timeout=60)
        for entry in others:
            writer.put(entry)
        held.release()
    assert held.batches == [1, 4, 4, 1]


def test_a_full_batch_is_written_without_waiting_for_more(store, make_entries, held):
    held.release()
    with Writer(store, batch_size=4, max_wait_s=FOREVER_S) as writer:
        for entry in make_entries(4):
            writer.put(entry)
        assert held.started.acquire(timeout=60)


def test_an_entry_waits_for_others_at_most_max_wait_s(store, make_entries, held):
    held.release()
    with Writer(store, max_wait_s=0.01) as writer:
        writer.put(make_entries(1)[0])
        assert held.started.acquire(timeout=60)


def test_flush_writes_all_accepted_entries_and_keeps_the_writer_open(store, make_entries):
    entries = make_entries(5)
    with Writer(store, max_wait_s=FOREVER_S) as writer:
        writer.flush()
        for entry in entries[:3]:
            writer.put(entry)
        writer.flush()
        assert store.contains(keys_of(entries)) == [True] * 3 + [False] * 2
        for entry in entries[3:]:
            writer.put(entry)
    assert len(store) == 5


def test_put_waits_while_the_queue_is_full(store, make_entries, held):
    entries = make_entries(5)
    with Writer(store, batch_size=2, max_queued=4) as writer:
        for entry in entries[:4]:
            writer.put(entry)
        fifth = threading.Thread(target=writer.put, args=entries[4:])
        fifth.start()
        fifth.join(0.1)
        assert fifth.is_alive()
        held.release()
        fifth.join(60)
        assert not fifth.is_alive()
    assert len(store) == 5


def test_an_entry_may_be_changed_after_it_was_put(store):
    image, request = np.zeros((4, 4, 3), np.uint8), {"method": "demo"}
    key = request_key(request)
    with Writer(store, max_wait_s=FOREVER_S) as writer:
        writer.put(Entry(request, image))
        image[:], request["method"] = 255, "other"
    assert store.get(key).image.max() == 0


def test_entries_that_the_store_has_already_are_not_counted(store, make_entries):
    store.put_many(make_entries(3))
    with Writer(store) as writer:
        for entry in make_entries(5):
            writer.put(entry)
    assert writer.written == 2


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (Entry({"x": 1}, np.zeros((4, 4))), "image must be uint8"),
        (Entry({"x": float("nan")}, np.zeros((4, 4, 3), np.uint8)), "must be a number"),
        (Entry({"x": 1}, np.zeros((4, 4, 3), np.uint8), {"p": float("nan")}), "must be a number"),
    ],
)
def test_a_bad_entry_is_refused_at_once_and_others_are_stored(store, make_entries, entry, message):
    with Writer(store) as writer:
        writer.put(make_entries(1)[0])
        with pytest.raises(CacheError, match=message):
            writer.put(entry)
    assert len(store) == 1


GIB = 6_000 / 2**30


def test_a_full_store_takes_what_fits_and_the_rest_stays_unwritten(tmp_path, make_entries):
    entries = make_entries(40)
    with Store(tmp_path, codec="raw", max_gib=GIB, policy=None) as store:
        writer = Writer(store, max_wait_s=FOREVER_S)
        for entry in entries:
            writer.put(entry)
        with pytest.raises(CacheFullError, match=r"cache.max_gib must leave room"):
            writer.close()
        fitted = len(store)
        assert 0 < fitted == writer.written < 40
        assert store.stats()["payload_bytes"] > 4_700
        assert keys_of(writer.unwritten()) == keys_of(entries[fitted:])
        assert store.verify().is_clean


def test_after_a_failure_every_call_raises_it_and_accepts_nothing(store, make_entries, monkeypatch):
    def fail(_):
        raise CacheFullError("the disk is full")

    monkeypatch.setattr(store, "put_many", fail)
    first, second = make_entries(2)
    writer = Writer(store, max_wait_s=0)
    writer.put(first)
    calls = (writer.flush, lambda: writer.put(second), writer.close, writer.close)
    for call in calls:
        with pytest.raises(CacheFullError, match="the disk is full"):
            call()
    assert keys_of(writer.unwritten()) == keys_of([first])


def test_a_failure_ends_the_wait_for_room_in_the_queue(store, make_entries, monkeypatch):
    held = Held(store, monkeypatch)
    held._put_many = lambda _: (_ for _ in ()).throw(CacheFullError("the disk is full"))
    first, second = make_entries(2)
    writer = Writer(store, batch_size=1, max_queued=1)
    writer.put(first)
    threading.Timer(0.05, held.release).start()
    for call in (lambda: writer.put(second), writer.close):
        with pytest.raises(CacheFullError, match="the disk is full"):
            call()


def test_an_unexpected_error_is_raised_too(store, make_entries, monkeypatch):
    monkeypatch.setattr(store, "put_many", lambda _: 1 / 0)
    writer = Writer(store)
    writer.put(make_entries(1)[0])
    with pytest.raises(ZeroDivisionError):
        writer.close()


def test_a_closed_writer_accepts_nothing(store, make_entries):
    writer = Writer(store)
    writer.close()
    writer.close()
    with pytest.raises(CacheError, match="writer must be open"):
        writer.put(make_entries(1)[0])


def test_threads_share_a_writer(store, make_entries):
    with Writer(store, batch_size=3, max_queued=5, max_wait_s=0) as writer:

        def put(start):
            for entry in make_entries(10, start):
                writer.put(entry)
            writer.flush()
            assert all(store.contains(keys_of(make_entries(10, start))))

        threads = [threading.Thread(target=put, args=(start,)) for start in (0, 20, 40)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert len(store) == writer.written == 30


@pytest.mark.parametrize(
    "numbers",
    [{"batch_size": 0}, {"batch_size": 9, "max_queued": 8}, {"max_wait_s": -1}]
    + [{"max_wait_s": float("nan")}],
)
def test_numbers_out_of_range_are_refused(store, numbers):
    with pytest.raises(CacheError, match="must be"):
        Writer(store, **numbers)


def test_a_forked_child_must_make_its_own_writer(store, make_entries):
    with Writer(store, max_wait_s=FOREVER_S) as writer:
        writer.put(make_entries(1)[0])
        receiver, sender = FORK.Pipe(duplex=False)

        def use():
            writer.close()  # does nothing in this process
            for call in (writer.flush, lambda: writer.put(make_entries(1)[0])):
                with pytest.raises(CacheError, match="in the process that made it"):
                    call()
            sender.send("told")

        child = FORK.Process(target=use)
        child.start()
        assert receiver.poll(60)
        child.join()
        assert len(store) == 0
    assert len(store) == 1


SCRIPT = """
import os, signal, sys
import numpy as np
from cache import Entry, Store, Writer
writer = Writer(Store(sys.argv[1]), batch_size=4, max_wait_s=1e6)
for number in range(4):
    writer.put(Entry({"n": number}, np.zeros((4, 4, 3), np.uint8)))
writer.flush()
writer.put(Entry({"n": 4}, np.zeros((4, 4, 3), np.uint8)))
"""


def run_script(folder, ending=""):
    command = [sys.executable, "-c", SCRIPT + ending, str(folder)]
    return subprocess.run(command, cwd=Path(__file__).parents[2], timeout=120).returncode


def test_a_process_that_forgets_to_close_loses_nothing(tmp_path):
    assert run_script(tmp_path) == 0
    assert len(Store(tmp_path)) == 5


def test_a_process_that_is_killed_loses_only_what_was_not_flushed(tmp_path):
    assert run_script(tmp_path, "os.kill(os.getpid(), signal.SIGKILL)") == -signal.SIGKILL
    with Store(tmp_path) as store:
        assert store.contains([request_key({"n": number}) for number in range(5)]) == (
            [True] * 4 + [False]
        )
        assert store.verify().is_clean
