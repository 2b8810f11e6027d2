"""After any sequence of calls a cache is in the state that the model is in."""

import shutil
import tempfile
from collections import Counter
from pathlib import Path

import lmdb
import pytest
from cache_machine import ReadingMachine, numbers, versions
from cache_model import DEAD, ELSEWHERE, ENTRIES, HERE, KEYS
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from cache import CacheFullError, Keys, Oldest, RecipeFirst, ServedFirst, Store, recipe_of
from cache.codecs import CODECS
from cache.record import Draft, parse

MAX_BYTES = 40_000


some = st.lists(numbers, min_size=1, max_size=8)
owners = st.sampled_from([HERE, ELSEWHERE, DEAD])
leases = st.sampled_from([1.0, 50.0, 1000.0])


class CacheMachine(ReadingMachine):
    def teardown(self):
        try:
            self.repair()
            assert self.store.verify().is_clean
        finally:
            self.store.close()
            self.clock.stop()
            shutil.rmtree(self.folder)

    @rule(chosen=some)
    def put(self, chosen):
        offered = [ENTRIES[number] for number in chosen]
        assert self.store.put_many(offered) == self.model.put(offered)

    @rule(chosen=some, max_times=st.sampled_from([None, 1, 2]))
    def put_within_a_limit(self, chosen, max_times):
        policy = Oldest() if max_times is None else ServedFirst(max_times)
        limited = self.make(max_gib=MAX_BYTES / 2**30, policy=policy)
        offered = [ENTRIES[number] for number in chosen]
        try:
            expected = self.model.put(offered, MAX_BYTES, max_times)
        except CacheFullError:
            with pytest.raises(CacheFullError, match="cache.max_gib must leave room"):
                limited.put_many(offered)
        else:
            assert limited.put_many(offered) == expected

    @rule(chosen=some)
    def put_records(self, chosen):
        offered = [ENTRIES[number] for number in chosen]
        records = [parse(KEYS[n], Draft(ENTRIES[n], CODECS["raw"], 1.0).seal(9)) for n in chosen]
        assert self.store.put_records(records) == self.model.put(offered)

    @rule(chosen=some, others=some, served=some, data=st.binary(max_size=9))
    def adopt(self, chosen, others, served, data):
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        with Store(folder, codec="raw") as other:
            other.put_many([ENTRIES[number] for number in chosen])
            other.note_served([KEYS[number] for number in served])
            for number in others:
                other.reject(KEYS[number], ENTRIES[number].request, "else")
            other.put_saliency("one", {"s0": data})
            adopted = self.store.adopt(other)
        rejected = {KEYS[n] for n in others} - {KEYS[n] for n in chosen}
        counts = Counter(KEYS[n] for n in served if n in chosen)
        expected = self.model.adopt(rejected, counts, {("one", "s0"): data})
        assert (adopted.rejections, adopted.served, adopted.saliency_maps) == expected
        assert adopted.problems == []

    @rule(chosen=some, owner=owners, lease_s=leases)
    def claim(self, chosen, owner, lease_s):
        keys = [KEYS[number] for number in chosen]
        assert self.store.claim(keys, owner, lease_s) == self.model.claim(keys, owner, lease_s)

    @rule(chosen=some, owner=owners)
    def release(self, chosen, owner):
        keys = [KEYS[number] for number in chosen]
        self.store.release(keys, owner)
        self.model.release(keys, owner)

    @rule(number=numbers, reason=st.sampled_from(["blank", "nan"]))
    def reject(self, number, reason):
        self.store.reject(KEYS[number], ENTRIES[number].request, reason)
        self.model.reject(KEYS[number], reason)

    @rule(chosen=some)
    def note_served(self, chosen):
        keys = [KEYS[number] for number in chosen]
        self.store.note_served(keys)
        for key in keys:
            if key in self.model.records:
                self.model.records[key].served += 1

    @rule(chosen=some, owner=owners, lease_s=leases)
    def pin(self, chosen, owner, lease_s):
        keys = [KEYS[number] for number in chosen]
        self.store.pin(keys, owner, lease_s)
        self.model.pins.update({(key, owner): self.model.now + lease_s for key in keys})

    @rule(chosen=some, owner=owners)
    def unpin(self, chosen, owner):
        keys = [KEYS[number] for number in chosen]
        self.store.unpin(keys, owner)
        for key in keys:
            self.model.pins.pop((key, owner), None)

    @rule(count=st.none() | st.integers(0, 4), max_times=st.sampled_from([None, 1, 2]))
    def evict_in_order(self, count, max_times):
        policy = Oldest() if max_times is None else ServedFirst(max_times)
        free = [key for key in self.model.order(max_times) if not self.model.is_pinned(key)]
        assert self.store.evict(policy, count=count) == len(free[:count])
        for key in free[:count]:
            self.model.evict(key)

    @rule(recipe=st.sampled_from([{"method": "a"}, {"method": "b"}]), count=st.integers(0, 4))
    def evict_a_recipe(self, recipe, count):
        fitting = [found.id for found in self.store.recipes() if found.fields == recipe]
        free = [
            key
            for key, kept in self.model.records.items()
            if recipe_of(kept.entry.request) == recipe and not self.model.is_pinned(key)
        ]
        gone = self.store.evict(RecipeFirst(tuple(fitting), then=None), count=count)
        assert gone == min(count, len(free))
        left = self.store.contains(free)  # which of them go is not promised
        for key, is_left in zip(free, left, strict=True):
            if not is_left:
                self.model.evict(key)

    @rule(chosen=some)
    def evict_by_name(self, chosen):
        keys = dict.fromkeys(KEYS[number] for number in chosen)
        gone = [k for k in keys if k in self.model.records and not self.model.is_pinned(k)]
        assert self.store.evict(Keys(tuple(keys))) == len(gone)
        for key in gone:
            self.model.evict(key)

    @rule(version=versions, source=st.integers(0, 3), data=st.binary(max_size=50))
    def put_saliency(self, version, source, data):
        self.store.put_saliency(version, {f"s{source}": data})
        self.model.saliency[version, f"s{source}"] = data

    @rule(version=versions)
    def drop_saliency(self, version):
        gone = [name for name in self.model.saliency if name[0] == version]
        assert self.store.drop_saliency(version) == len(gone)
        for name in gone:
            del self.model.saliency[name]

    @rule(passing_s=st.sampled_from([0.5, 20.0, 400.0]))
    def time_passes(self, passing_s):
        self.model.now += passing_s

    @precondition(lambda self: self.model.records)
    @rule(data=st.data())
    def a_byte_of_a_record_changes(self, data):
        key = data.draw(st.sampled_from(sorted(self.model.records)))
        self.store.close()
        with lmdb.open(str(self.store.path), map_size=2**30, max_dbs=16, lib_version=0) as other:
            records = other.open_db(b"records", create=False)
            with other.begin(write=True) as txn:
                value = txn.get(key, db=records)
                txn.put(key, value[:-1] + bytes([value[-1] ^ 1]), db=records)
        kept = self.model.records[key]
        kept.is_broken = not kept.is_broken

    @rule(number=numbers)
    def drop_corrupt(self, number):
        assert self.store.drop_corrupt(KEYS[number]) == self.model.drop_broken(KEYS[number])

    @rule()
    def repair(self):
        broken = [key for key, kept in self.model.records.items() if kept.is_broken]
        report = self.store.verify(repair=True)
        assert report.is_clean == (not broken)
        assert sorted(report.dropped) == sorted(broken)
        for key in broken:
            self.model.drop_broken(key)

    @rule()
    def compact(self):
        before = self.store.stats()["file_bytes"]
        freed = self.store.compact()
        assert self.store.stats()["file_bytes"] == before - freed

    @rule()
    def close(self):
        self.store.close()


class LongCacheMachine(CacheMachine):
    """The same rules for longer; runs at night."""


CacheMachine.TestCase.settings = settings(max_examples=10, stateful_step_count=30, deadline=None)
LongCacheMachine.TestCase.settings = settings(max_examples=200, stateful_step_count=50)
TestCacheMachine = CacheMachine.TestCase
TestLongCacheMachine = pytest.mark.nightly(LongCacheMachine.TestCase)
