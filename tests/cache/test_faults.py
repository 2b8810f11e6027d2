"""What befalls the files from outside: a worded error, and what was committed is kept."""

import faulthandler
import multiprocessing
import os
import shutil
import signal
import subprocess
from pathlib import Path

import lmdb
import numpy as np
import pytest

from cache import CacheError, CacheFullError, Entry, Store, handle, opening, request_key, soundness

FORK = multiprocessing.get_context("fork")


def keys_of(entries):
    return [request_key(entry.request) for entry in entries]


def large(count, side=60):
    """Entries that need pages of their own."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    return [Entry({"large": number}, image) for number, image in enumerate(images)]


def exit_status(function):
    """How a forked process ends that runs `function`."""
    process = FORK.Process(target=function)
    process.start()
    process.join()
    return process.exitcode


def read_all(path):
    with Store(path, readonly=True) as store:
        return [store.get(key) for _, key in store.tail()]


@pytest.fixture
def filled(tmp_path):
    """The directory of a closed cache with a few large records."""
    with Store(tmp_path / "cache", codec="raw") as store:
        store.put_many(large(8))
    return store.path


@pytest.fixture
def examinations(monkeypatch):
    """The files that were examined."""
    seen = []

    def examine(path):
        seen.append(path)
        return look(path)

    look = soundness._examine
    monkeypatch.setattr(soundness, "_examine", examine)
    return seen


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MiB."""
    path = tmp_path / "small"
    path.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", path], check=False)
    if mounted.returncode:
        pytest.skip("file systems can be mounted by root only")
    yield path
    subprocess.run(["umount", "--lazy", path], check=True)


def test_a_cache_that_was_closed_is_opened_without_an_examination(filled, examinations):
    assert len(read_all(filled)) == 8
    Store(filled).put_many(large(9))
    assert examinations == []


def test_a_cache_whose_writer_was_killed_needs_no_examination(filled, examinations):
    def write_and_die():
        Store(filled).put_many(large(9))
        os.kill(os.getpid(), signal.SIGKILL)

    assert exit_status(write_and_die) == -signal.SIGKILL
    assert len(read_all(filled)) == 9
    assert examinations == []


def test_a_copy_is_examined_once(filled, tmp_path, examinations):
    copied = shutil.copytree(filled, tmp_path / "copy")
    assert len(read_all(copied)) == len(read_all(copied)) == 8
    assert examinations == [copied]


def test_a_file_that_another_program_wrote_to_is_examined(filled, examinations):
    os.utime(filled / "data.mdb", ns=(1, 1))
    read_all(filled)
    assert examinations == [filled]


def test_readers_do_not_vouch_for_the_time_after_a_power_cut(filled, examinations, monkeypatch):
    (filled / "sound").unlink()
    read_all(filled)
    monkeypatch.setattr(soundness, "_boot", lambda: "the next boot")
    read_all(filled)
    assert len(examinations) == 2
    Store(filled, codec="raw").put_many(large(9))
    monkeypatch.setattr(soundness, "_boot", lambda: "another boot")
    read_all(filled)
    assert len(examinations) == 2


def test_a_cache_that_a_writer_has_open_is_not_examined(filled, examinations):
    is_open, is_over = FORK.Event(), FORK.Event()

    def keep_open():
        with Store(filled).open():
            is_open.set()
            is_over.wait()

    keeper = FORK.Process(target=keep_open)
    keeper.start()
    is_open.wait()
    (filled / "sound").unlink()
    try:
        assert len(read_all(filled)) == 8
    finally:
        is_over.set()
        keeper.join()
    assert examinations == []
    read_all(filled)
    assert examinations == [filled]


def test_a_cut_file_would_kill_the_process_and_is_refused(filled, monkeypatch):
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


def test_an_examination_that_fails_is_an_error(filled, monkeypatch):
    (filled / "sound").unlink()
    monkeypatch.setattr(soundness.sys, "executable", "/missing/python")
    with pytest.raises(CacheError, match="cannot be examined for damage: No such file"):
        Store(filled).open()
    monkeypatch.setattr(soundness.sys, "executable", "/bin/false")
    with pytest.raises(CacheError, match="cannot be examined for damage: status"):
        Store(filled).open()


@pytest.mark.parametrize("readonly", [True, False])
def test_a_cache_that_is_removed_while_open_is_an_error_and_is_not_made_anew(filled, readonly):
    store = Store(filled, readonly=readonly).open()
    shutil.rmtree(filled)
    for _ in range(2):
        with pytest.raises(CacheError, match="was removed, replaced or cut short while it was"):
            len(store)
    if not readonly:
        with pytest.raises(CacheError, match="was removed"):
            store.put_many(large(9))
    assert not filled.exists()


def test_a_cache_that_is_replaced_while_open_is_an_error_until_it_is_closed(filled, tmp_path):
    with Store(tmp_path / "other") as other:
        other.put_many(large(3))
    store = Store(filled).open()
    shutil.rmtree(filled)
    shutil.copytree(other.path, filled)
    with pytest.raises(CacheError, match="replaced"):
        len(store)
    store.close()
    assert len(store) == 3


def test_a_file_that_is_cut_while_open_is_an_error_before_it_is_read(filled):
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
    assert all(store.contains(keys_of(large(8))))


def test_every_process_opens_the_same_map(filled):
    with Store(filled).open() as store:
        assert store._environment._handle.info()["map_size"] == handle.MAP_BYTES


def test_a_note_that_is_no_text_is_made_anew(filled):
    (filled / "sound").write_bytes(b"\xff\0 nonsense")
    assert len(read_all(filled)) == 8
    assert Path(filled / "sound").read_text().startswith(soundness.fingerprint(filled))
