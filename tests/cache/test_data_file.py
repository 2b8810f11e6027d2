"""The data file: when it is examined before LMDB opens it, and when its loss is noticed."""

import os
import shutil
import signal
import time
from pathlib import Path

import pytest
from cache_samples import FORK, exit_status, large, read_all

from cache import CacheError, Store
from cache.backend import directory, opening


@pytest.fixture
def examinations(monkeypatch):
    """The directories whose files were examined."""
    seen = []

    def examine(path):
        seen.append(path)
        return examine_really(path)

    examine_really = opening._examine
    monkeypatch.setattr(opening, "_examine", examine)
    return seen


def test_a_cache_that_was_closed_opens_without_an_examination(filled, examinations):
    assert len(read_all(filled)) == 8
    Store(filled).put_many(large(9))
    assert examinations == []


def test_a_cache_whose_writer_was_killed_opens_without_an_examination(filled, examinations):
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


def test_the_note_of_a_reader_ends_with_the_boot_and_that_of_a_writer_does_not(
    filled, examinations, monkeypatch
):
    (filled / "sound").unlink()
    read_all(filled)
    monkeypatch.setattr(opening, "_boot", lambda: "the next boot")
    read_all(filled)
    assert len(examinations) == 2
    Store(filled, codec="raw").put_many(large(9))
    monkeypatch.setattr(opening, "_boot", lambda: "another boot")
    read_all(filled)
    assert len(examinations) == 2


def test_a_cache_that_another_process_has_open_is_not_examined(filled, examinations):
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


def test_an_examination_that_fails_is_an_error(filled, monkeypatch):
    (filled / "sound").unlink()
    monkeypatch.setattr(opening.sys, "executable", "/missing/python")
    with pytest.raises(CacheError, match="cannot be examined for damage: No such file"):
        Store(filled).open()
    monkeypatch.setattr(opening.sys, "executable", "/bin/false")
    with pytest.raises(CacheError, match="cannot be examined for damage: status"):
        Store(filled).open()


def test_an_unreadable_note_is_written_anew(filled):
    (filled / "sound").write_bytes(b"\xff\0 nonsense")
    assert len(read_all(filled)) == 8
    assert Path(filled / "sound").read_text().startswith(opening.fingerprint(filled))


@pytest.fixture
def opened(tmp_path, make_entries, monkeypatch):
    """An open cache of three records, whose file is checked at every use."""
    monkeypatch.setattr(directory, "READER_CHECKS_EVERY_S", 0.0)
    with Store(tmp_path / "cache") as store:
        store.put_many(make_entries(3))
        yield store


def test_moving_an_open_cache_is_an_error(opened, tmp_path, monkeypatch):
    monkeypatch.setattr(directory, "PATH_CHECKED_EVERY_S", 0.0)
    opened.path.rename(tmp_path / "elsewhere")
    with pytest.raises(CacheError, match="was removed, replaced or cut short while it was open"):
        len(opened)


def test_a_snapshot_by_hard_links_may_come_and_go(opened, tmp_path):
    snapshot = tmp_path / "snapshot.mdb"
    for _ in range(2):
        os.link(opened.path / "data.mdb", snapshot)
        assert len(opened) == 3
        snapshot.unlink()
        assert len(opened) == 3


def test_removing_a_file_after_a_snapshot_of_it_is_an_error(opened, tmp_path):
    os.link(opened.path / "data.mdb", tmp_path / "snapshot.mdb")
    assert len(opened) == 3
    (opened.path / "data.mdb").unlink()
    with pytest.raises(CacheError, match="was removed"):
        len(opened)


def test_opening_and_closing_leaves_no_descriptor_behind(opened):
    opened.close()
    before = len([*Path("/proc/self/fd").iterdir()])
    for _ in range(5):
        opened.open()
        opened.close()
    assert len([*Path("/proc/self/fd").iterdir()]) == before


def test_a_reader_checks_the_file_again_soon(opened, monkeypatch):
    monkeypatch.setattr(directory, "READER_CHECKS_EVERY_S", 0.001)
    assert len(opened) == 3
    (opened.path / "data.mdb").unlink()
    time.sleep(0.002)
    with pytest.raises(CacheError, match="was removed"):
        len(opened)


def test_a_writer_checks_the_file_each_time(opened, make_entries, monkeypatch):
    monkeypatch.setattr(directory, "READER_CHECKS_EVERY_S", 3600.0)
    assert len(opened) == 3
    (opened.path / "data.mdb").unlink()
    with pytest.raises(CacheError, match="was removed"):
        opened.put_many(make_entries(5))


def test_a_missing_file_is_looked_for_at_every_use_until_it_is_back(
    opened, tmp_path, make_entries, monkeypatch
):
    monkeypatch.setattr(directory, "PATH_CHECKED_EVERY_S", 0.0)
    (opened.path / "data.mdb").rename(tmp_path / "data.mdb")
    with pytest.raises(CacheError, match="was removed"):
        opened.put_many(make_entries(5))
    monkeypatch.setattr(directory, "READER_CHECKS_EVERY_S", 3600.0)
    with pytest.raises(CacheError, match="was removed"):
        len(opened)
    (tmp_path / "data.mdb").rename(opened.path / "data.mdb")
    assert len(opened) == 3
