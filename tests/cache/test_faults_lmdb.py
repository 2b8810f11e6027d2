"""LMDB's traps (fork, reader slots, flags, lock files), each with what would happen without us."""

import multiprocessing
import os
import struct
import subprocess
import sys

import numpy as np
import pytest

from cache import Entry, Store, request_key
from cache.backend import environment, opening

FORK = multiprocessing.get_context("fork")


def in_child(function):
    """What `function` returns in a forked process."""
    receiver, sender = FORK.Pipe(duplex=False)
    process = FORK.Process(target=lambda: sender.send(function()))
    process.start()
    sender.close()
    result = receiver.recv()
    process.join()
    return result


def entry(number):
    image = np.random.default_rng(number).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    return Entry({"method": "demo", "variant": number}, image)


def right_images(store, count):
    """How many of the newest records have the pixels of their request."""
    last = store.position()
    keys = [key for _, key in store.tail(max(0, last - count))]
    records = [store.get(key) for key in keys]
    return [np.array_equal(r.image, entry(r.request["variant"]).image) for r in records]


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
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


def test_a_child_that_closes_what_it_inherited_leaves_the_readers_of_its_parent(tmp_path):
    store = Store(tmp_path, codec="raw")
    store.put_many([entry(0)])
    with store._environment.transaction() as (txn, tables):
        before = txn.get(request_key(entry(0).request), db=tables.records)
        in_child(store.close)
        readers = store._environment._opened.handle.readers()
        assert str(os.getpid()) in readers
        assert txn.get(request_key(entry(0).request), db=tables.records) == before


def test_many_more_readers_than_lmdb_allows_by_default(tmp_path):
    store = Store(tmp_path).open()
    opened = store._environment._opened.handle
    readers = [opened.begin() for _ in range(300)]
    assert opened.info()["num_readers"] >= 300
    for reader in readers:
        reader.abort()


def test_a_reader_finds_a_slot_where_all_are_held_by_the_dead(tmp_path, monkeypatch):
    monkeypatch.setattr(opening, "MAX_READERS", 1)
    store = Store(tmp_path).open()
    program = f"""
import os
from cache import Store
with Store({str(tmp_path)!r})._environment.transaction():
    os._exit(7)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 7
    assert len(store) == 0


def test_a_writer_clears_the_slots_of_readers_that_died_since_it_opened(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "READERS_CHECKED_EVERY_S", 0.0)
    store = Store(tmp_path / "cache").open()
    is_reading = FORK.Event()

    def read_for_ever():
        with Store(tmp_path / "cache")._environment.transaction():
            is_reading.set()
            multiprocessing.Event().wait()

    victim = FORK.Process(target=read_for_ever)
    victim.start()
    is_reading.wait()
    store.put_many([entry(0)])
    assert str(victim.pid) in store._environment._opened.handle.readers()
    victim.kill()
    victim.join()
    store.put_many([entry(1)])
    assert str(victim.pid) not in store._environment._opened.handle.readers()


def test_what_is_committed_is_on_the_disk_and_no_map_is_written_to(tmp_path):
    with Store(tmp_path).open() as store:
        flags = store._environment._opened.handle.flags()
    assert (flags["sync"], flags["metasync"], flags["writemap"]) == (True, True, False)


def test_a_variable_of_the_shell_does_not_change_the_file_format(tmp_path):
    program = f"from cache import Store; Store({str(tmp_path / 'cache')!r}).open()"
    subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "LMDB_DEFAULT_LIB_VERSION": "1"},
        check=True,
    )
    head = (tmp_path / "cache" / "data.mdb").read_bytes()[:24]
    assert struct.unpack_from("=II", head, 16) == (0xBEEFC0DE, 1)


def asked_elsewhere(path):
    program = f"from cache.soundness import *; print(is_in_use(Path({str(path)!r})))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    return done.stdout.strip()


def test_nothing_that_a_store_does_gives_up_its_lock(tmp_path):
    with Store(tmp_path) as store:
        store.put_many([entry(0)])
        store.stats()
        store.verify()
        store.tail()
        assert asked_elsewhere(tmp_path) == "True"  # a fork would close it here
    assert asked_elsewhere(tmp_path) == "False"


def test_a_name_longer_than_a_key_of_lmdb_is_counted_nevertheless(tmp_path):
    store = Store(tmp_path)
    request = {"method": "m" * 2000}
    store.reject(request_key(request), request, "r" * 2000)
    store.put_many([Entry({**request, "variant": 1}, np.zeros((2, 2, 3), np.uint8))])
    assert store.stats()["rejected"] == 1
    assert store.verify().is_clean
