import numpy as np
import pytest
from cache_samples import keys_of
from hypothesis import given, settings
from hypothesis import strategies as st

from cache import Entry, Keys, Oldest, Store, recipe_of, request_key
from cache.backend import index

PIXEL = np.zeros((1, 1, 3), np.uint8)


def entry(variant, method="demo", source="a", **more):
    request = {"method": method, "source_digest": source, "variant": variant, "resolution": 64}
    return Entry(request | more, PIXEL)


def test_fields_that_differ_from_image_to_image_are_not_part_of_a_recipe(store):
    varying = ["source_digest", "source_label", "target_label", "target_digest", "prompt"]
    varying += ["strength", "variant", "noise_seed", "saliency_version", "image_digest"]
    for number, name in enumerate(varying):
        store.put_many([Entry({"method": "demo", name: str(number)}, PIXEL)])
    (recipe,) = store.recipes()
    assert recipe.fields == {"method": "demo"}
    assert recipe.entries == len(varying)
    store.put_many([Entry({"method": "demo", "scheduler": "ddim"}, PIXEL)])
    assert len(store.recipes()) == 2


def test_recipes_with_values_of_different_types_differ(store):
    for value in (1, True, 1.0, "1"):
        store.put_many([Entry({"guidance_scale": value}, PIXEL)])
    assert len(store.recipes()) == 4
    (only,) = set(store.sample(np.random.default_rng(0), 50, {"guidance_scale": True}))
    assert only == request_key({"guidance_scale": True})


def test_a_sample_of_a_recipe_is_uniform_over_its_records(store):
    offered = [entry(v, method="other" if v % 3 else "demo") for v in range(30)]
    store.put_many(offered)
    wanted = keys_of(offered[::3])
    drawn = store.sample(np.random.default_rng(0), 10_000, recipe_of(offered[0].request))
    counts = [drawn.count(key) for key in wanted]
    assert sum(counts) == 10_000
    assert min(counts) > 850
    assert max(counts) < 1150


def test_a_sample_of_several_recipes_is_uniform_over_their_records(store):
    offered = [entry(0, resolution=32)] + [entry(v) for v in range(3)] + [entry(9, method="x")]
    store.put_many(offered)
    drawn = store.sample(np.random.default_rng(0), 8_000, {"method": "demo"})
    assert set(drawn) == set(keys_of(offered[:4]))
    assert all(1800 < drawn.count(key) < 2200 for key in keys_of(offered[:4]))


def test_a_sample_of_an_unknown_recipe_is_empty(store):
    store.put_many([entry(0)])
    assert store.sample(np.random.default_rng(0), 5, {"method": "none"}) == []


def test_requests_of_a_recipe_come_in_order_of_arrival_without_evicted_ones(store):
    offered = [entry(v, method="ab"[v % 2]) for v in range(9)]
    store.put_many(offered)
    store.evict(Keys((keys_of(offered)[2],)))
    expected = [(request_key(e.request), e.request) for e in (offered[n] for n in (0, 4, 6, 8))]
    assert [pair for _, *pair in store.requests({"method": "a"})] == [[*e] for e in expected]
    later = [pair for _, *pair in store.requests({"method": "a"}, after=5)]
    assert later == [[*e] for e in expected[2:]]
    assert [position for position, *_ in store.requests(after=6)] == [7, 8, 9]
    assert len(list(store.requests())) == 8


def test_requests_evicted_during_the_walk_are_left_out(store, monkeypatch):
    monkeypatch.setattr("cache.reader._REQUESTS_PART", 2)
    offered = [entry(v) for v in range(6)]
    store.put_many(offered)
    walk = store.requests()
    first = next(walk)
    store.evict(Keys((keys_of(offered)[3],)))
    assert [key for _, key, _ in (first, *walk)] == [
        key for n, key in enumerate(keys_of(offered)) if n != 3
    ]


def test_records_are_found_by_source(store):
    offered = [entry(v, source="ab"[v % 2]) for v in range(7)]
    store.put_many(offered)
    assert store.by_source("a") == keys_of(offered[::2])
    store.evict(Keys((keys_of(offered)[2],)))
    assert store.by_source("a") == keys_of(offered[:1] + offered[4::2])
    assert store.by_source("c") == []


def test_a_source_may_have_any_name(store):
    for name in ("", "x" * 10_000, "\0", "\udcff"[:0] + "é"):
        store.put_many([entry(0, source=name)])
        assert store.by_source(name) == keys_of([entry(0, source=name)])


@settings(max_examples=15)
@given(st.data())
def test_sampling_stays_exact_after_any_evictions(tmp_path_factory, data):
    methods = data.draw(st.lists(st.sampled_from("ab"), min_size=1, max_size=12))
    offered = [entry(number, method) for number, method in enumerate(methods)]
    gone = data.draw(st.sets(st.integers(0, len(offered) - 1)))
    with Store(tmp_path_factory.mktemp("cache"), codec="raw") as store:
        store.put_many(offered)
        store.evict(Keys(tuple(keys_of([offered[number] for number in sorted(gone)]))))
        left = [one for number, one in enumerate(offered) if number not in gone]
        assert store.verify().is_clean
        rng = np.random.default_rng(0)
        assert set(store.sample(rng, 400)) == set(keys_of(left))
        for method in "ab":
            matching = [one for one in left if one.request["method"] == method]
            assert set(store.sample(rng, 400, {"method": method})) == set(keys_of(matching))


def test_stats_count_classes_and_strengths(store):
    store.put_many(
        [
            entry(v, source_label=v % 2, target_label=v % 3, strength=[0.5, 0.9][v % 2])
            for v in range(6)
        ]
    )
    stats = store.stats()
    assert stats["by_data_set"] == {
        "": {
            "entries": 6,
            "source_classes": {"0": 3, "1": 3},
            "target_classes": {"0": 2, "1": 2, "2": 2},
        }
    }
    assert stats["by_strength"] == {"0.50": 3, "0.90": 3}
    store.evict(Oldest(), count=5)
    stats = store.stats()
    left = {"entries": 1, "source_classes": {"1": 1}, "target_classes": {"2": 1}}
    assert stats["by_data_set"] == {"": left}
    assert (stats["by_strength"], stats["recipes"]) == ({"0.90": 1}, 1)


def test_stats_count_what_was_made_in_the_last_hour(store, monkeypatch):
    now = 1e9
    monkeypatch.setattr("time.time", lambda: now)
    for number in range(10):
        store.put_many([entry(number)])
        now += 600
    assert store.stats()["made_last_hour"] == 6
    store.evict(Oldest(), count=7)
    assert store.stats()["made_last_hour"] == 3
    now += 3600
    assert store.stats()["made_last_hour"] == 0


def test_a_clock_that_goes_back_does_not_disturb_the_order_of_arrival(store, monkeypatch):
    now = 1e9
    monkeypatch.setattr("time.time", lambda: now)
    store.put_many([entry(0)])
    now -= 10_000
    store.put_many([entry(1)])
    with store._environment.transaction() as (txn, tables):
        times = [row.arrived for _, row in index.walk_log(txn, tables)]
    assert times == [1e9, 1e9]


@pytest.mark.parametrize("start", [0, 5])
def test_records_of_another_cache_are_copied_byte_for_byte(tmp_path, make_entries, start):
    one, other = Store(tmp_path / "one"), Store(tmp_path / "other", codec="raw")
    one.put_many(make_entries(8))
    other.put_many(make_entries(8, start + 4))
    keys = keys_of(make_entries(8))
    stored = [one.inspect(key) for key in keys]
    assert other.put_records(stored + stored) == min(8, start + 4)
    for record in stored[:start]:
        copied = other.inspect(record.key)
        assert (copied.image_bytes, copied.created) == (record.image_bytes, record.created)
        assert copied.codec.name == one.codec
    assert other.verify().is_clean
