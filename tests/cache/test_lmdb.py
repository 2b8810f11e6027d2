"""Traps of LMDB: reader slots, flags, lock files, map sizes, long keys."""

import multiprocessing
import os
import struct
import subprocess
import sys

import lmdb
import numpy as np
from cache_samples import FORK, exit_status, in_child, large

from cache import Entry, Rejection, Store, request_key
from cache.backend import environment, opening


def handle_of(store):
    return store.open()._environment._opened.handle


def test_a_child_that_closes_what_it_inherited_keeps_the_readers_of_its_parent(store, make_entries):
    (entry,) = make_entries(1)
    store.put_many([entry])
    with store._environment.transaction() as (txn, tables):
        before = txn.get(request_key(entry.request), db=tables.records)
        in_child(store.close)
        assert str(os.getpid()) in store._environment._opened.handle.readers()
        assert txn.get(request_key(entry.request), db=tables.records) == before


def test_many_more_may_read_than_lmdb_allows_by_default(store):
    opened = handle_of(store)
    readers = [opened.begin() for _ in range(300)]
    assert opened.info()["num_readers"] >= 300
    for reader in readers:
        reader.abort()


def test_a_reader_finds_a_slot_if_all_are_held_by_dead_processes(tmp_path, monkeypatch):
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


def test_a_writer_clears_the_slots_of_readers_that_died_since_it_opened(
    store, make_entries, monkeypatch
):
    monkeypatch.setattr(environment, "READERS_CHECKED_EVERY_S", 0.0)
    store.open()
    is_reading = FORK.Event()

    def read_for_ever():
        with Store(store.path)._environment.transaction():
            is_reading.set()
            multiprocessing.Event().wait()

    victim = FORK.Process(target=read_for_ever)
    victim.start()
    is_reading.wait()
    store.put_many(make_entries(1))
    assert str(victim.pid) in handle_of(store).readers()
    victim.kill()
    victim.join()
    store.put_many(make_entries(1, 1))
    assert str(victim.pid) not in handle_of(store).readers()


def test_slots_of_dead_readers_are_cleared_when_a_cache_is_opened(store):
    store.open()
    is_open, is_over = FORK.Event(), FORK.Event()

    def keep_open():  # LMDB starts afresh if nobody else has the cache open
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
    readers = handle_of(store).readers()
    is_over.set()
    keeper.join()
    assert str(victim.pid) not in readers


def test_a_variable_of_the_shell_does_not_change_the_file_format(tmp_path):
    program = f"from cache import Store; Store({str(tmp_path / 'cache')!r}).open()"
    subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "LMDB_DEFAULT_LIB_VERSION": "1"},
        check=True,
    )
    head = (tmp_path / "cache" / "data.mdb").read_bytes()[:24]
    assert struct.unpack_from("=II", head, 16) == (0xBEEFC0DE, 1)


def test_nothing_that_a_store_does_gives_up_its_lock(store, make_entries):
    store.put_many(make_entries(1))
    store.stats()
    store.verify()
    store.tail()
    assert is_in_use_elsewhere(store.path) == "True"
    store.close()
    assert is_in_use_elsewhere(store.path) == "False"


def is_in_use_elsewhere(path):
    # In a new process: a fork would close the store first.
    program = f"from cache.backend.opening import *; print(is_in_use(Path({str(path)!r})))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    return done.stdout.strip()


def test_a_name_longer_than_a_key_of_lmdb_is_counted(store):
    request = {"method": "m" * 2000}
    store.reject(request_key(request), request, Rejection("r" * 2000))
    store.put_many([Entry({**request, "variant": 1}, np.zeros((2, 2, 3), np.uint8))])
    assert store.stats()["rejected"] == 1
    assert store.verify().is_clean


def test_a_map_that_another_process_resized_is_read_on(filled):
    store = Store(filled).open()

    def grow_with_another_map():
        with lmdb.open(str(filled), map_size=2**41, max_dbs=16, lib_version=0) as resized:
            resized.set_mapsize(2**41)
            table = resized.open_db(b"records", create=False)
            with resized.begin(write=True) as txn:
                txn.put(b"filler", bytes(2**24), db=table)

    assert exit_status(grow_with_another_map) == 0
    assert len(store) == 9
    assert all(store.contains([request_key(entry.request) for entry in large(8)]))


def test_every_process_opens_the_same_map(store):
    assert handle_of(store).info()["map_size"] == opening.MAP_BYTES
