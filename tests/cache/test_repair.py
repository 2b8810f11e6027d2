import numpy as np
import pytest
from overwriting import overwrite

from cache import CorruptRecordError, Oldest, Owner, Store, request_key
from cache.backend import index


@pytest.fixture
def keys(store, make_entries):
    """Of ten records, the third of which was served twice."""
    entries = make_entries(10)
    store.put_many(entries)
    found = [request_key(entry.request) for entry in entries]
    store.note_served([found[2], found[2]])
    store.close()
    return found


def damage(store, table, key, change):
    store.close()
    overwrite(store.path, table, key, change)


def flip(old):
    return old[:-1] + bytes([old[-1] ^ 1])


def position(number):
    return number.to_bytes(8, "big")


def test_a_corrupt_record_is_dropped_and_may_be_made_again(store, keys, make_entries):
    damage(store, b"records", keys[4], flip)
    with pytest.raises(CorruptRecordError):
        store.get(keys[4])
    assert store.drop_corrupt(keys[4])
    assert store.status([keys[4]]) == ["free"]
    assert store.stats()["corrupt"] == 1
    assert store.verify().is_clean
    assert store.claim([keys[4]], Owner.current()) == [keys[4]]
    assert store.put_many(make_entries(10)) == 1
    assert store.get(keys[4]) is not None


def test_a_record_that_can_be_read_is_not_dropped(store, keys):
    assert not store.drop_corrupt(keys[0])
    assert not store.drop_corrupt(bytes(32))
    assert store.stats()["corrupt"] == 0
    assert len(store) == 10


def test_a_record_with_a_ruined_header_is_found_and_dropped(store, keys):
    damage(store, b"records", keys[4], lambda old: bytes(48) + old[48:])
    assert store.drop_corrupt(keys[4])
    assert [key for _, key in store.tail()] == keys[:4] + keys[5:]
    drawn = store.sample(np.random.default_rng(0), 300)
    assert set(drawn) == set(keys[:4] + keys[5:])


@pytest.mark.parametrize(
    ("table", "key", "change"),
    [
        (b"log", position(3), lambda row: row[:50]),
        (b"log", position(3), lambda row: bytes(32) + row[32:]),
        (b"log", position(3), lambda row: row[:32] + bytes(16) + row[48:]),
        (b"log", position(3), lambda row: row[:80] + bytes(16)),
        (b"members", b"\xff" * 16 + position(5), lambda _: position(1)),
        (b"members", b"\xff" * 16 + position(5), lambda old: position(1) + old[8:]),
        (b"meta", b"n:payload_bytes", lambda _: position(5)),
        (b"meta", b"n:stored_bytes", lambda _: position(5)),
        (b"meta", b"n:method/demo", lambda _: position(5)),
        (b"meta", b"n:strength/0.50", lambda _: position(5)),
        (b"claims", bytes(32), lambda _: b"no claim"),
        (b"pins", bytes(48), lambda _: b"no pin"),
    ],
)
def test_what_does_not_fit_the_records_is_found_and_written_anew(store, keys, table, key, change):
    damage(store, table, key, change)
    report = store.verify(repair=True)
    assert not report.is_clean
    assert report.dropped == []
    assert store.verify().is_clean
    assert store.tail() == list(enumerate(keys, 1))


def test_a_repair_keeps_what_the_log_knew(store, keys):
    damage(store, b"records", keys[0], flip)
    assert store.verify(repair=True).dropped == [keys[0]]
    with store._environment.transaction() as (txn, tables):
        rows = dict(index.walk_log(txn, tables))
    assert rows[3].served == 2
    assert store.position() == 10
    assert store.stats()["corrupt"] == 1


def test_positions_go_on_behind_the_last_after_a_repair(store, keys, make_entries):
    store.evict(Oldest())
    damage(store, b"meta", b"n:payload_bytes", lambda _: position(5))
    store.verify(repair=True)
    store.put_many(make_entries(1))
    assert store.tail() == [(11, keys[0])]


def test_a_repair_of_a_clean_cache_changes_nothing(store, keys):
    store.close()
    before = (store.path / "data.mdb").read_bytes()
    with Store(store.path) as again:
        assert again.verify(repair=True).is_clean
    assert (store.path / "data.mdb").read_bytes() == before
