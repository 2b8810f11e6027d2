"""When a data file is looked at before LMDB is let at it, and when it is trusted."""

import os
import shutil
import signal
from pathlib import Path

import pytest
from fault_samples import FORK, exit_status, large, read_all

from cache import CacheError, Store
from cache.backend import opening


@pytest.fixture
def examinations(monkeypatch):
    """The files that were examined."""
    seen = []

    def examine(path):
        seen.append(path)
        return look(path)

    look = opening._examine
    monkeypatch.setattr(opening, "_examine", examine)
    return seen


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
    monkeypatch.setattr(opening, "_boot", lambda: "the next boot")
    read_all(filled)
    assert len(examinations) == 2
    Store(filled, codec="raw").put_many(large(9))
    monkeypatch.setattr(opening, "_boot", lambda: "another boot")
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


def test_an_examination_that_fails_is_an_error(filled, monkeypatch):
    (filled / "sound").unlink()
    monkeypatch.setattr(opening.sys, "executable", "/missing/python")
    with pytest.raises(CacheError, match="cannot be examined for damage: No such file"):
        Store(filled).open()
    monkeypatch.setattr(opening.sys, "executable", "/bin/false")
    with pytest.raises(CacheError, match="cannot be examined for damage: status"):
        Store(filled).open()


def test_a_note_that_is_no_text_is_made_anew(filled):
    (filled / "sound").write_bytes(b"\xff\0 nonsense")
    assert len(read_all(filled)) == 8
    assert Path(filled / "sound").read_text().startswith(opening.fingerprint(filled))
