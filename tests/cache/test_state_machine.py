"""After any sequence of calls a cache is in the state that the model is in."""

import pickle
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from cache_model import DEAD, ELSEWHERE, ENTRIES, HERE, KEYS, Model
from cache_samples import overwrite
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cache import (
    CacheFullError,
    CorruptRecordError,
    Keys,
    Oldest,
    RecipeFirst,
    Rejection,
    ServedFirst,
    Store,
    recipe_of,
)
from cache.codecs import CODECS
from cache.record import Draft, parse

MAX_BYTES = 40_000

numbers = st.integers(0, len(ENTRIES) - 1)
some = st.lists(numbers, min_size=1, max_size=8)
owners = st.sampled_from([HERE, ELSEWHERE, DEAD])
leases = st.sampled_from([1.0, 50.0, 1000.0])
recipes = st.sampled_from([None, {}, {"method": "a"}, {"method": "b"}, {"resolution": 64}])
versions = st.sampled_from(["one", "two"])


class CacheMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        in_memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
        self.folder = Path(tempfile.mkdtemp(prefix="cache-machine-", dir=in_memory))
        self.model = Model()
        self.clock = mock.patch("time.time", side_effect=lambda: self.model.now)
        self.clock.start()
        self.store = self.make().open()

    def make(self, **options):
        return Store(self.folder / "cache", codec="raw", **options)

    def teardown(self):
        try:
            self.repair()
            assert self.store.verify().is_clean
        finally:
            self.store.close()
            self.clock.stop()
            shutil.rmtree(self.folder)

    @rule(number=numbers)
    def get(self, number):
        kept = self.model.records.get(KEYS[number])
        if kept is None:
            assert self.store.get(KEYS[number]) is None
        elif kept.is_broken:
            with pytest.raises(CorruptRecordError, match=KEYS[number].hex()):
                self.store.get(KEYS[number])
        else:
            record = self.store.get(KEYS[number])
            assert np.array_equal(record.image, kept.entry.image)
            assert (record.request, record.scores) == (kept.entry.request, kept.entry.scores)

    @rule(number=numbers)
    def inspect(self, number):
        kept = self.model.records.get(KEYS[number])
        if kept is None:
            assert self.store.inspect(KEYS[number]) is None
        elif not kept.is_broken:
            stored = self.store.inspect(KEYS[number])
            assert (stored.position, stored.codec.name) == (kept.position, "raw")
            assert stored.image_bytes == kept.entry.image.tobytes()
            assert stored.request == kept.entry.request

    @rule(number=numbers, digits=st.integers(0, 64), limit=st.integers(0, 3))
    def find(self, number, digits, limit):
        prefix = KEYS[number].hex()[:digits]
        fitting = sorted(key for key in self.model.records if key.hex().startswith(prefix))
        assert self.store.find(prefix, limit) == fitting[:limit]

    @rule(after=st.integers(0, 12), limit=st.none() | st.integers(0, 5))
    def tail(self, after, limit):
        expected = [(at, key) for at, key in self.model.log() if at > after]
        assert self.store.tail(after, limit) == expected[:limit]

    @rule(seed=st.integers(0, 99), recipe=recipes)
    def sample(self, seed, recipe):
        drawn = self.store.sample(np.random.default_rng(seed), 6, recipe)
        matching = self.model.matching(recipe)
        assert len(drawn) == (6 if matching else 0)
        assert set(drawn) <= matching

    @rule(source=st.integers(0, 5))
    def by_source(self, source):
        digest = f"s{source}"
        expected = [
            key
            for _, key in self.model.log()
            if self.model.records[key].entry.request["source_digest"] == digest
        ]
        assert self.store.by_source(digest) == expected

    @rule(recipe=recipes)
    def requests(self, recipe):
        matching = self.model.matching(recipe)
        expected = [
            (key, self.model.records[key].entry.request)
            for _, key in self.model.log()
            if key in matching
        ]
        assert [(key, request) for _, key, request in self.store.requests(recipe)] == expected

    @rule(version=versions, source=st.integers(0, 3))
    def get_saliency(self, version, source):
        expected = self.model.saliency.get((version, f"s{source}"))
        assert self.store.get_saliency(version, f"s{source}") == expected

    @rule(readonly=st.booleans())
    def another_store_sees_the_same(self, readonly):
        other = pickle.loads(pickle.dumps(self.make(readonly=readonly)))
        assert other.tail() == self.model.log()

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
                other.reject(KEYS[number], ENTRIES[number].request, Rejection("else"))
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
        self.store.reject(KEYS[number], ENTRIES[number].request, Rejection(reason))
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
        overwrite(self.store.path, b"records", key, lambda old: old[:-1] + bytes([old[-1] ^ 1]))
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

    @invariant()
    def every_key_has_the_status_of_the_model(self):
        assert self.store.status(KEYS) == [self.model.status(key) for key in KEYS]
        assert self.store.contains(KEYS) == [key in self.model.records for key in KEYS]
        assert (len(self.store), self.store.position()) == (
            len(self.model.records),
            self.model.position,
        )

    @invariant()
    def everything_is_counted(self):
        model, stats = self.model, self.store.stats()
        requests = [kept.entry.request for kept in model.records.values()]
        assert stats["by_method"] == Counter(request["method"] for request in requests)
        assert stats["rejected_by_reason"] == Counter(model.rejected.values())
        assert (stats["evicted"], stats["corrupt"]) == (model.evicted, model.corrupt)
        assert stats["stored_bytes"] == sum(kept.stored for kept in model.records.values())
        living = [model.lives(*claim) for claim in model.claims.values()]
        assert (stats["claims_live"], stats["claims_dead"]) == (sum(living), living.count(False))
        assert stats["pins_live"] == sum(model.lives(o, t) for (_, o), t in model.pins.items())
        assert stats["saliency_maps"] == len(model.saliency)
        expected = Counter(tuple(sorted(recipe_of(request).items())) for request in requests)
        found = {tuple(sorted(r.fields.items())): r.entries for r in self.store.recipes()}
        assert found == expected


class LongCacheMachine(CacheMachine):
    """The same rules for longer runs at night."""


CacheMachine.TestCase.settings = settings(max_examples=10, stateful_step_count=30, deadline=None)
LongCacheMachine.TestCase.settings = settings(max_examples=200, stateful_step_count=50)
TestCacheMachine = CacheMachine.TestCase
TestLongCacheMachine = pytest.mark.nightly(LongCacheMachine.TestCase)
