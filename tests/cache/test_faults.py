"""Faults of disk and files: each has a worded error, and what was committed is kept."""

import faulthandler
import os
import resource
import shutil
import signal
import subprocess

import numpy as np
import pytest
from cache_samples import exit_status, in_child, keys_of, large, read_all

from cache import CacheError, CacheFullError, Store
from cache.backend import directory, opening


@pytest.fixture(autouse=True)
def file_is_checked_at_every_use(monkeypatch):
    monkeypatch.setattr(directory, "READER_CHECKS_EVERY_S", 0.0)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MiB."""
    path = tmp_path / "small"
    path.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", path], check=False)
    if mounted.returncode:
        pytest.skip("file systems can be mounted by root only")
    yield path
    subprocess.run(["umount", "--lazy", path], check=True)


def test_a_file_cut_short_is_refused_since_reading_it_would_kill_the_process(filled, monkeypatch):
    os.truncate(filled / "data.mdb", 5 * 4096)
    with pytest.raises(CacheError, match="is damaged: .*put back a copy") as caught:
        read_all(filled)
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(opening, "check_sound", lambda path: False)

    def read_unchecked():
        faulthandler.disable()
        read_all(filled)

    assert exit_status(read_unchecked) == -signal.SIGBUS


@pytest.mark.parametrize("size", [1, 4096, 8191, 8192])
def test_a_file_cut_to_its_first_pages_is_refused(filled, size):
    os.truncate(filled / "data.mdb", size)
    for readonly in (True, False):
        with pytest.raises(CacheError, match="is damaged|with another file"):
            Store(filled, readonly=readonly).open()
    assert (filled / "data.mdb").stat().st_size == size


def test_a_refused_file_stays_as_it_is(filled):
    with (filled / "data.mdb").open("r+b") as file:
        file.seek(4096 * 4 + 10)
        file.write(b"\xff" * 8)
    before = (filled / "data.mdb").read_bytes()
    with pytest.raises(CacheError, match="is damaged"):
        Store(filled).put_many(large(9))
    assert (filled / "data.mdb").read_bytes() == before


@pytest.mark.parametrize("readonly", [True, False])
def test_removing_an_open_cache_is_an_error_and_it_is_not_created_anew(filled, readonly):
    store = Store(filled, readonly=readonly).open()
    shutil.rmtree(filled)
    for _ in range(2):
        with pytest.raises(CacheError, match="was removed, replaced or cut short while it was"):
            len(store)
    if not readonly:
        with pytest.raises(CacheError, match="was removed"):
            store.put_many(large(9))
    assert not filled.exists()


def test_replacing_an_open_cache_is_an_error_until_it_is_closed(filled, tmp_path):
    with Store(tmp_path / "other") as other:
        other.put_many(large(3))
    store = Store(filled).open()
    shutil.rmtree(filled)
    shutil.copytree(other.path, filled)
    with pytest.raises(CacheError, match="replaced"):
        len(store)
    store.close()
    assert len(store) == 3


def test_cutting_an_open_file_is_an_error_before_it_is_read(filled):
    store = Store(filled)
    store.put_many(large(9))
    os.truncate(filled / "data.mdb", 5 * 4096)
    for key in keys_of(large(9)):
        with pytest.raises(CacheError, match="cut short"):
            store.get(key)


def test_a_full_disk_is_a_worded_error_and_keeps_what_is_committed(small_disk):
    store = Store(small_disk / "cache", codec="raw")
    assert store.put_many(large(4)) == 4
    with pytest.raises(CacheFullError, match="of disk,"):
        store.put_many(large(2000))
    assert len(store) == 4
    assert store.put_many(large(6)) == 2
    store.close()
    assert store.verify().is_clean
    for entry, key in zip(large(6), keys_of(large(6)), strict=True):
        assert np.array_equal(store.get(key).image, entry.image)


def test_a_file_size_limit_is_a_worded_error_and_keeps_what_is_committed(tmp_path):
    store = Store(tmp_path, codec="raw")
    store.put_many(large(3))

    def fill():
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, resource.RLIM_INFINITY))
        with pytest.raises(CacheFullError, match="the disk is full, or a quota"):
            store.put_many(large(200))
        return store.put_many(large(4)), store.verify().is_clean

    assert in_child(fill) == (1, True)
    assert store.contains(keys_of(large(20))) == [True] * 4 + [False] * 16
    assert store.put_many(large(200)) == 196


def test_a_disk_too_small_for_a_cache_is_a_worded_error(small_disk):
    (small_disk / "filler").write_bytes(bytes(2**22 - 8192))
    with pytest.raises(CacheError, match="of disk,|No space left"):
        Store(small_disk / "cache").put_many(large(1))


def test_a_cache_on_a_read_only_file_system_is_a_worded_error(small_disk):
    with Store(small_disk / "cache") as store:
        store.put_many(large(1))
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    for readonly in (True, False):
        with pytest.raises(CacheError, match="Read-only file system|must be writable"):
            Store(store.path, readonly=readonly).open()
