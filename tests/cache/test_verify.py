"""Verifying and repairing: what a change behind the cache's back is reported as, and cured by."""

import numpy as np
import pytest
from cache_samples import overwrite

from cache import CorruptRecordError, Entry, Oldest, Owner, Rejection, Store, request_key
from cache.backend import index
from cache.record import Draft


@pytest.fixture
def keys(store, make_entries):
    """The keys of ten records, the third of which was served twice."""
    entries = make_entries(10)
    store.put_many(entries)
    found = [request_key(entry.request) for entry in entries]
    store.note_served([found[2], found[2]])
    store.close()
    return found


def damage(store, table, key, change):
    store.close()
    overwrite(store.path, table, key, change)


def flip_last_bit(old):
    return old[:-1] + bytes([old[-1] ^ 1])


def position(number):
    return number.to_bytes(8, "big")


def test_a_corrupt_record_is_an_error_and_not_an_image(store, keys):
    damage(store, b"records", keys[0], flip_last_bit)
    for read in (store.get, store.inspect):
        with pytest.raises(CorruptRecordError, match=f"record {keys[0].hex()} is corrupt"):
            read(keys[0])
    assert store.get(keys[1]) is not None


def test_verify_names_what_is_broken(store, keys):
    assert store.verify().is_clean
    damage(store, b"records", keys[0], lambda old: old[::-1])
    damage(store, b"log", position(2), lambda row: bytes(32) + row[32:])
    problems = {(problem.what, problem.key) for problem in store.verify().problems}
    assert ("record is not in the log", keys[1]) in problems
    assert ("log names a missing record", bytes(32)) in problems
    assert any("corrupt" in what and key == keys[0] for what, key in problems)
    assert len(problems) == 3


def test_verify_notices_wrong_counts(store, keys):
    damage(store, b"meta", b"n:payload_bytes", lambda _: position(5))
    (problem,) = store.verify().problems
    assert problem.what.startswith("accounting gives 5 bytes")


def test_verify_reports_its_progress(store, make_entries):
    store.put_many(make_entries(100))
    seen = []
    store.verify(lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert seen[-1] == (200, 200)


def test_stats_count_what_is_there(store, make_entries):
    store.put_many([*make_entries(3), Entry({"method": "other"}, np.zeros((4, 4, 3), np.uint8))])
    store.reject(request_key({"x": 1}), {"x": 1}, Rejection("blank"))
    store.claim([request_key({"x": 2})], Owner.current())
    stats = store.stats()
    assert (stats["entries"], stats["position"], stats["rejected"]) == (4, 4, 1)
    assert stats["by_method"] == {"demo": 3, "other": 1}
    assert stats["rejected_by_reason"] == {"blank": 1}
    assert (stats["claims_live"], stats["claims_dead"]) == (1, 0)
    assert 0 < stats["payload_bytes"] < stats["file_bytes"]


def test_a_corrupt_record_is_dropped_and_can_be_made_again(store, keys, make_entries):
    damage(store, b"records", keys[4], flip_last_bit)
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
def test_a_repair_rewrites_what_does_not_fit_the_records(store, keys, table, key, change):
    damage(store, table, key, change)
    report = store.verify(repair=True)
    assert not report.is_clean
    assert report.dropped == []
    assert store.verify().is_clean
    assert store.tail() == list(enumerate(keys, 1))


def test_a_repair_keeps_service_counts_and_positions(store, keys):
    damage(store, b"records", keys[0], flip_last_bit)
    assert store.verify(repair=True).dropped == [keys[0]]
    with store._environment.transaction() as (txn, tables):
        rows = dict(index.walk_log(txn, tables))
    assert rows[3].served == 2
    assert store.position() == 10
    assert store.stats()["corrupt"] == 1


def test_if_two_records_name_one_position_a_repair_moves_one_to_the_end(store, make_entries):
    entries = make_entries(6)
    store.put_many(entries)
    keys = [request_key(entry.request) for entry in entries]
    moved = resealed(store.inspect(keys[4]), 2)
    damage(store, b"records", keys[4], lambda _: moved)
    assert store.verify(repair=True).dropped == []
    assert store.verify().is_clean
    assert {key for _, key in store.tail()} == set(keys)
    assert [place for place, _ in store.tail()] == [1, 2, 3, 4, 6, 7]


def resealed(record, position):
    """Return the bytes of a record that names another position."""
    return Draft.copy(record).seal(position)


def test_after_a_repair_positions_go_on_behind_the_last(store, keys, make_entries):
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
