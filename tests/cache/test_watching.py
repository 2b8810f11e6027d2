"""The file under an open cache: what is noticed of it, and what is no reason to stop."""

import os
import time
from pathlib import Path

import pytest

from cache import CacheError, Store
from cache.backend import directory


@pytest.fixture(autouse=True)
def asked_each_time(monkeypatch):
    """Tests are faster than the pause between two questions to the file."""
    monkeypatch.setattr(directory, "READ_AFTER_S", 0.0)


@pytest.fixture
def opened(tmp_path, make_entries):
    with Store(tmp_path / "cache") as store:
        store.put_many(make_entries(3))
        yield store


def test_a_cache_that_is_moved_away_while_open_is_an_error(opened, tmp_path, monkeypatch):
    monkeypatch.setattr(directory, "LOOKED_EVERY_S", 0.0)
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


def test_a_file_that_is_removed_after_a_snapshot_of_it_was_made_is_an_error(opened, tmp_path):
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


def test_a_reader_soon_asks_the_file_again(opened, monkeypatch):
    monkeypatch.setattr(directory, "READ_AFTER_S", 0.001)
    assert len(opened) == 3
    (opened.path / "data.mdb").unlink()
    time.sleep(0.002)
    with pytest.raises(CacheError, match="was removed"):
        len(opened)


def test_a_writer_asks_the_file_each_time(opened, make_entries, monkeypatch):
    monkeypatch.setattr(directory, "READ_AFTER_S", 3600.0)
    assert len(opened) == 3
    (opened.path / "data.mdb").unlink()
    with pytest.raises(CacheError, match="was removed"):
        opened.put_many(make_entries(5))


def test_a_file_that_is_missing_is_asked_for_until_it_is_back(
    opened, tmp_path, make_entries, monkeypatch
):
    monkeypatch.setattr(directory, "LOOKED_EVERY_S", 0.0)
    (opened.path / "data.mdb").rename(tmp_path / "data.mdb")
    with pytest.raises(CacheError, match="was removed"):
        opened.put_many(make_entries(5))
    monkeypatch.setattr(directory, "READ_AFTER_S", 3600.0)
    with pytest.raises(CacheError, match="was removed"):
        len(opened)
    (tmp_path / "data.mdb").rename(opened.path / "data.mdb")
    assert len(opened) == 3
