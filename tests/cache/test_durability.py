"""Commits that wait for the disk, and disks without room."""

import os

import pytest
from cache_samples import FORK

from cache import CacheFullError, Oldest, Store, request_key


def flags(store):
    return store.open()._environment._opened.handle.flags()


def test_a_commit_waits_for_the_disk_unless_told_otherwise(tmp_path):
    power, process = Store(tmp_path / "a"), Store(tmp_path / "b", durability="process")
    assert (flags(power)["sync"], flags(power)["metasync"]) == (True, True)
    assert not flags(process)["sync"]
    assert not flags(power)["writemap"]
    assert not flags(process)["writemap"]


def test_stores_of_one_process_that_differ_in_durability_wait_for_the_disk(tmp_path, make_entries):
    process = Store(tmp_path, durability="process")
    process.put_many(make_entries(1))
    assert not flags(process)["sync"]
    power = Store(tmp_path)
    assert flags(process)["sync"]
    assert process.put_many(make_entries(2)) == 1
    assert len(power) == 2


def test_processes_that_differ_in_durability_write_one_cache(tmp_path, make_entries):
    def write(first, durability):
        store = Store(tmp_path, durability=durability)
        for variant in range(first, first + 20):
            store.put_many(make_entries(1, variant))

    jobs = ((0, "power"), (100, "process"), (200, "power"))
    processes = [FORK.Process(target=write, args=job) for job in jobs]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len(Store(tmp_path)) == 60
    assert Store(tmp_path).verify().is_clean


def test_a_full_disk_is_reported_before_anything_is_written(store, make_entries, monkeypatch):
    store.put_many(make_entries(1))
    full = os.statvfs_result((4096, 4096, 10, 1, 1, 0, 0, 0, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda _: full)
    with pytest.raises(CacheFullError, match="needs .* bytes of disk, .* are free; free space"):
        store.put_many(make_entries(2))
    assert len(store) == 1


def test_free_pages_of_the_file_count_as_room(tmp_path, make_entries, monkeypatch):
    store = Store(tmp_path, codec="raw")
    store.put_many(make_entries(400, side=40))
    store.evict(Oldest())
    full = os.statvfs_result((4096, 4096, 10, 1, 1, 0, 0, 0, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda _: full)
    assert store.put_many(make_entries(3)) == 3


def test_a_call_that_would_pass_the_limit_is_refused_whole(tmp_path, make_entries):
    entries = make_entries(8, side=32)
    store = Store(tmp_path, codec="raw", max_gib=20_000 / 2**30, policy=None)
    assert store.put_many(entries[:4]) == 4
    with pytest.raises(CacheFullError, match="cache.max_gib must leave room"):
        store.put_many(entries[4:])
    assert (
        store.contains([request_key(entry.request) for entry in entries])
        == [True] * 4 + [False] * 4
    )
    assert store.verify().is_clean


def test_a_present_entry_needs_no_room(tmp_path, make_entries):
    Store(tmp_path).put_many(make_entries(2))
    assert Store(tmp_path, max_gib=1e-9).put_many(make_entries(2)) == 0
