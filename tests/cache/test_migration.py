import logging

import numpy as np
import pytest
import schema_1

from cache import CacheError, Owner, Store, request_key
from cache.backend.tables import put_number

REQUESTS = [
    {"method": "demo", "variant": v, "source_digest": "ab"[v % 2], "strength": 0.5}
    for v in range(6)
]
KEYS = [request_key(request) for request in REQUESTS]


def test_an_older_cache_is_migrated_by_a_writer_with_one_line(tmp_path, caplog):
    schema_1.write(tmp_path, REQUESTS)
    with caplog.at_level(logging.INFO), Store(tmp_path) as store:
        store.open()
    assert caplog.messages == [f"cache {store.path} migrated from schema 1 to 3: 6 records"]
    assert store.verify().is_clean
    assert store.tail() == list(enumerate(KEYS, 1))
    assert store.get(KEYS[3]).request == REQUESTS[3]
    assert store.by_source("a") == KEYS[::2]
    assert set(store.sample(np.random.default_rng(0), 100, {"method": "demo"})) == set(KEYS)
    assert store.status([request_key({"gone": 1})]) == ["rejected"]
    stats = store.stats()
    assert (stats["by_method"], stats["rejected_by_reason"]) == ({"demo": 6}, {"blank": 1})
    assert (stats["schema"], stats["position"]) == (3, 6)


def test_a_migrated_cache_is_written_on(tmp_path, make_entries, caplog):
    schema_1.write(tmp_path, REQUESTS)
    store = Store(tmp_path)
    assert store.put_many(make_entries(2)) == 2
    store.close()
    caplog.clear()
    assert [position for position, _ in store.tail()] == list(range(1, 9))
    assert store.verify().is_clean
    assert caplog.messages == []


def test_a_reader_says_what_to_run(tmp_path):
    schema_1.write(tmp_path, REQUESTS)
    before = (tmp_path / "data.mdb").read_bytes()
    with pytest.raises(
        CacheError, match="must be 3 to be read, got 1 .* verify --repair"
    ) as caught:
        Store(tmp_path, readonly=True).open()
    assert "\n" not in str(caught.value)
    assert (tmp_path / "data.mdb").read_bytes() == before


def test_a_cache_of_schema_2_keeps_its_records_as_they_are(tmp_path, make_entries, caplog):
    schema_1.write(tmp_path, REQUESTS)
    store = Store(tmp_path).open()
    with store._environment.transaction(write=True) as (txn, tables):
        put_number(txn, tables, "schema", 2)
        before = dict(txn.cursor(tables.records))
    store.close()
    caplog.clear()
    assert store.put_many(make_entries(2)) == 2
    assert caplog.messages == [f"cache {store.path} migrated from schema 2 to 3"]
    with store._environment.transaction() as (txn, tables):
        after = dict(txn.cursor(tables.records))
    assert before.items() < after.items()
    assert store.get(KEYS[3]).request == REQUESTS[3]
    assert store.stats()["schema"] == 3
    assert store.verify().is_clean


def test_an_empty_older_cache_is_migrated(tmp_path):
    schema_1.write(tmp_path, [])
    with Store(tmp_path) as store:
        assert (len(store), store.position(), store.tail()) == (0, 0, [])
        assert store.verify().is_clean


def test_records_that_cannot_be_read_are_left_out_of_a_migration(tmp_path, caplog):
    def damage(txn, tables):
        txn.put(KEYS[0], b"nothing", db=tables["records"])
        value = txn.get(KEYS[2], db=tables["records"])
        txn.put(KEYS[2], value[:24] + (1).to_bytes(8, "big") + value[32:], db=tables["records"])

    schema_1.write(tmp_path, REQUESTS, damage)
    with Store(tmp_path) as store:
        assert store.contains(KEYS) == [False, True, True, True, True, True]
        assert "1 corrupt ones dropped" in caplog.text
        report = store.verify(repair=True)
        assert [problem.key for problem in report.problems] == report.dropped == [KEYS[2]]
        assert store.verify().is_clean


def test_of_two_records_that_name_one_position_one_moves_to_the_end(tmp_path):
    def move(txn, tables):
        txn.put(KEYS[4], schema_1.record(REQUESTS[4], bytes(48), 2), db=tables["records"])

    schema_1.write(tmp_path, REQUESTS, move)
    with Store(tmp_path) as store:
        assert store.verify().is_clean
        assert {key for _, key in store.tail()} == set(KEYS)
        assert [position for position, _ in store.tail()] == [1, 2, 3, 4, 6, 7]


def test_claims_outlive_a_migration(tmp_path):
    schema_1.write(tmp_path, REQUESTS[:1])
    with Store(tmp_path) as store:
        store.claim([KEYS[1]], Owner.current())
        assert store.status(KEYS[:2]) == ["present", "claimed"]
