import pickle

import numpy as np
import pytest
from cache_samples import keys_of

from cache import (
    CacheError,
    CacheFullError,
    Entry,
    Keys,
    Oldest,
    Owner,
    RecipeFirst,
    ServedFirst,
    Store,
)

PAGE_GIB = 4096 / 2**30
DEAD = Owner(host=Owner.current().host, pid=Owner.current().pid, started=1)


def entries(count, start=0, **more):
    """Return records that take two pages each."""
    return [
        Entry({"method": "demo", "variant": v, **more}, np.full((40, 50, 3), v % 251, np.uint8))
        for v in range(start, start + count)
    ]


def limited(path, records, policy=None, **arguments):
    return Store(path, codec="raw", max_gib=2 * records * PAGE_GIB, policy=policy, **arguments)


def test_the_oldest_are_evicted_to_make_room(tmp_path):
    store = limited(tmp_path, 4, Oldest())
    for first in range(0, 10, 2):
        assert store.put_many(entries(2, first)) == 2
    assert store.contains(keys_of(entries(10))) == [False] * 6 + [True] * 4
    assert store.stats()["evicted"] == 6
    assert store.verify().is_clean


def test_records_served_often_enough_are_evicted_first(tmp_path):
    store = limited(tmp_path, 4, ServedFirst(max_times=2))
    keys = keys_of(entries(6))
    store.put_many(entries(4))
    store.note_served([keys[0], keys[2], keys[2], keys[3]])
    store.note_served([keys[3]])
    store.put_many(entries(1, 4))
    assert store.contains(keys) == [True, True, False, True, True, False]
    store.put_many(entries(1, 5))
    assert store.contains(keys) == [True, True, False, False, True, True]
    store.put_many(entries(1, 6))
    assert store.contains(keys) == [False, True, False, False, True, True]
    assert store.verify().is_clean


def test_a_named_recipe_is_evicted_first(tmp_path):
    store = limited(tmp_path, 4, None)
    store.put_many(entries(2) + entries(2, 2, resolution=64))
    old, new = store.recipes()
    if "resolution" in old.fields:
        old, new = new, old
    chosen = limited(tmp_path, 4, RecipeFirst((new.id,)))
    chosen.put_many(entries(2, 4))
    kept = keys_of(entries(2)) + keys_of(entries(2, 4))
    assert [key for _, key in store.tail()] == kept
    assert store.verify().is_clean


def test_without_a_policy_nothing_is_evicted(tmp_path):
    store = limited(tmp_path, 2, None)
    store.put_many(entries(2))
    with pytest.raises(CacheFullError, match="cache.max_gib must leave room.*raise it"):
        store.put_many(entries(1, 2))
    assert store.contains(keys_of(entries(3))) == [True, True, False]


def test_a_pinned_record_is_not_evicted(tmp_path):
    store = limited(tmp_path, 3, Oldest())
    keys = keys_of(entries(5))
    store.put_many(entries(3))
    store.pin(keys[:1], Owner.current())
    store.put_many(entries(2, 3))
    assert store.contains(keys) == [True, False, False, True, True]
    with pytest.raises(CacheFullError, match="more than may be evicted"):
        store.put_many(entries(3, 5))
    store.unpin(keys[:1], Owner.current())
    assert store.put_many(entries(3, 5)) == 3


def test_the_pin_of_a_dead_owner_does_not_count_and_is_removed(tmp_path):
    store = limited(tmp_path, 2, Oldest())
    store.put_many(entries(2))
    store.pin(keys_of(entries(2)), DEAD)
    assert store.put_many(entries(2, 2)) == 2
    with store._environment.transaction() as (txn, tables):
        assert txn.stat(tables.pins)["entries"] == 0


def test_a_pin_ends_with_its_lease_and_can_be_renewed(tmp_path, monkeypatch):
    now = 1e9
    monkeypatch.setattr("time.time", lambda: now)
    store = limited(tmp_path, 1, Oldest())
    store.put_many(entries(1))
    owner = Owner(host="elsewhere", pid=1, started=1)
    store.pin(keys_of(entries(1)), owner, lease_s=10)
    store.pin(keys_of(entries(1)), owner, lease_s=20)
    now += 15
    with pytest.raises(CacheFullError):
        store.put_many(entries(1, 1))
    now += 5
    assert store.put_many(entries(1, 1)) == 1


def test_a_limit_smaller_than_one_record_is_an_error_of_its_own(tmp_path):
    store = Store(tmp_path, codec="raw", max_gib=PAGE_GIB)
    with pytest.raises(CacheError, match="must hold at least one record, got") as caught:
        store.put_many(entries(1))
    assert not isinstance(caught.value, CacheFullError)
    assert len(store) == 0


def test_a_call_never_evicts_its_own_records(tmp_path):
    store = limited(tmp_path, 2, Oldest())
    store.put_many(entries(2))
    assert store.put_many(entries(1) + entries(1, 2)) == 1
    assert store.contains(keys_of(entries(3))) == [True, False, True]


def test_positions_are_never_given_out_twice(tmp_path):
    store = limited(tmp_path, 4, Oldest())
    store.put_many(entries(3))
    assert store.evict(Oldest()) == 3
    assert (len(store), store.position(), store.tail()) == (0, 3, [])
    store.put_many(entries(1))
    assert store.tail(after=3) == [(4, keys_of(entries(1))[0])]
    assert store.verify().is_clean


def test_evict_stops_at_a_count_or_a_size(tmp_path, monkeypatch):
    monkeypatch.setattr("cache.backend.eviction._EVICTED_AT_ONCE", 2)
    store = Store(tmp_path, codec="raw")
    store.put_many(entries(12))
    assert store.evict(Oldest(), count=3) == 3
    assert store.evict(Oldest(), to_gib=2 * 4 * PAGE_GIB) == 5
    assert store.contains(keys_of(entries(12))) == [False] * 8 + [True] * 4
    assert store.evict(ServedFirst(then=None)) == 0
    assert store.evict(Keys(tuple(keys_of(entries(9))))) == 1
    assert store.verify().is_clean


def test_a_store_pickles_with_its_policy(tmp_path):
    store = limited(tmp_path, 4, ServedFirst(max_times=3))
    assert pickle.loads(pickle.dumps(store)).policy == ServedFirst(max_times=3)
