import pytest
from cache_samples import overwrite

from cache import CacheError, CacheFullError, CorruptRecordError, Store


def test_a_map_comes_back_under_its_version_and_source(store):
    store.put_saliency("v1", {"a": b"one", "b": b""})
    store.put_saliency("v2", {"a": b"two"})
    assert store.get_saliency("v1", "a") == b"one"
    assert store.get_saliency("v1", "b") == b""
    assert store.get_saliency("v2", "a") == b"two"
    assert store.get_saliency("v2", "b") is store.get_saliency("v3", "a") is None


def test_a_later_map_replaces_an_earlier_one(store):
    store.put_saliency("v1", {"a": b"long before"})
    store.put_saliency("v1", {"a": b"now"})
    assert store.get_saliency("v1", "a") == b"now"
    stats = store.stats()
    assert (stats["saliency_maps"], stats["saliency_bytes"]) == (1, 16 + 3)


def test_dropping_a_version_leaves_the_others(store):
    for version in ("v1", "v2"):
        store.put_saliency(version, dict.fromkeys("abc", b"x"))
    assert store.drop_saliency("v1") == 3
    assert store.get_saliency("v1", "a") is None
    assert store.get_saliency("v2", "a") == b"x"
    assert store.stats()["saliency_bytes"] == 3 * 17


def test_a_map_has_a_largest_size(store, monkeypatch):
    monkeypatch.setattr("cache.backend.saliency.MAX_MAP_BYTES", 8)
    with pytest.raises(CacheError, match="saliency map must be at most 8 bytes, got 9 for b"):
        store.put_saliency("v1", {"a": b"fits", "b": bytes(9)})
    assert store.get_saliency("v1", "a") is None


def test_maps_count_towards_the_quota_but_evict_nothing(tmp_path, make_entries):
    store = Store(tmp_path, codec="raw", max_gib=10_000 / 2**30)
    store.put_many(make_entries(3))
    with pytest.raises(CacheFullError, match="must leave room for saliency maps"):
        store.put_saliency("v1", {"a": bytes(10_000)})
    assert store.get_saliency("v1", "a") is None
    assert len(store) == 3


def test_a_corrupt_map_is_an_error_and_is_dropped_by_a_repair(store):
    store.put_saliency("v1", {"a": b"one"})
    store.put_saliency("v2", {"a": b"two"})
    with store._environment.transaction() as (txn, tables), txn.cursor(tables.saliency) as cursor:
        (broken,) = (key for key, value in cursor if value.endswith(b"one"))
    store.close()
    overwrite(store.path, b"saliency", broken, lambda old: old[:-1] + b"?")
    with pytest.raises(CorruptRecordError, match="its checksum does not match"):
        store.get_saliency("v1", "a")
    assert [problem.key for problem in store.verify(repair=True).problems] == [broken]
    assert store.verify().is_clean
    assert store.get_saliency("v1", "a") is None
    assert store.get_saliency("v2", "a") == b"two"
