"""The rules that only read, of the state machine that compares a cache with its model."""

import pickle
import tempfile
from collections import Counter
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from cache_model import ENTRIES, KEYS, Model
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from cache import CorruptRecordError, Store, recipe_of

numbers = st.integers(0, len(ENTRIES) - 1)
recipes = st.sampled_from([None, {}, {"method": "a"}, {"method": "b"}, {"resolution": 64}])
versions = st.sampled_from(["one", "two"])


class ReadingMachine(RuleBasedStateMachine):
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
        assert list(self.store.requests(recipe)) == expected

    @rule(version=versions, source=st.integers(0, 3))
    def get_saliency(self, version, source):
        expected = self.model.saliency.get((version, f"s{source}"))
        assert self.store.get_saliency(version, f"s{source}") == expected

    @rule(readonly=st.booleans())
    def another_store_sees_the_same(self, readonly):
        other = pickle.loads(pickle.dumps(self.make(readonly=readonly)))
        assert other.tail() == self.model.log()

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
