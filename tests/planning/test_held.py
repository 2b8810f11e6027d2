"""What a cache holds of a plan: found by the records' own fields, remembered beside the cache."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest
from request_samples import make_part, make_sources

from cache import Entry, Keys, Rejection, Store, request_key
from online_aug.planning import Images, ListedRequests, Plan, Served
from online_aug.planning import held as module
from online_aug.planning.held import Memory, held_of, holds_any, path_of, rejected_of

PIXELS = np.zeros((4, 4, 3), np.uint8)


def make_plan(**changes):
    return Plan([make_part(**changes)], Images.of(make_sources(12)), 3)


PLAN = make_plan()


def put(store, numbers, plan=PLAN):
    store.put_many([Entry(plan[number].to_fields(), PIXELS) for number in numbers])


@pytest.fixture(autouse=True)
def _everything_is_kept(monkeypatch):
    monkeypatch.setattr(module, "_LEAST_NEW", 1)


class Counting(Store):
    """A store that counts the records whose requests are read."""

    read = 0

    def requests(self, *arguments, **named):
        for found in super().requests(*arguments, **named):
            self.read += 1
            yield found


@pytest.fixture
def counting(tmp_path):
    with Counting(tmp_path / "cache").open() as store:
        yield store


def numbers(store, plan=PLAN):
    return held_of(store, plan).numbers.tolist()


def test_the_images_of_a_plan_are_found_in_the_order_of_their_arrival(store):
    put(store, [5, 0, 7])
    put(store, [1, 2], make_plan(seed=3))
    put(store, [30])
    held = held_of(store, PLAN)
    assert held.numbers.tolist() == [5, 0, 7, 30]
    assert held.rows["position"].tolist() == [1, 2, 3, 6]
    assert held.labels.tolist() == [PLAN[number].target_label for number in (5, 0, 7, 30)]
    assert held.position == 6
    assert held.there(len(PLAN)).nonzero()[0].tolist() == [0, 5, 7, 30]


def test_the_next_time_only_what_is_new_is_read(counting):
    put(counting, range(10))
    assert numbers(counting) == list(range(10))
    assert counting.read == 10
    put(counting, [20, 21])
    assert numbers(counting) == [*range(10), 20, 21]
    assert counting.read == 12
    assert numbers(counting, make_plan()) == [*range(10), 20, 21]
    assert counting.read == 12


def test_one_image_is_enough_to_know_that_there_is_any(counting):
    assert not holds_any(counting, PLAN)
    put(counting, range(4), make_plan(seed=2))
    assert not holds_any(counting, PLAN)
    assert not holds_any(counting, ListedRequests([*PLAN][:2]))
    put(counting, range(30))
    counting.read = 0
    assert holds_any(counting, PLAN)
    assert holds_any(counting, ListedRequests([*PLAN][:2]))
    assert counting.read == 5
    numbers(counting)
    counting.read = 0
    assert holds_any(counting, PLAN)
    assert counting.read == 0
    counting.evict(Keys(tuple(request.key for request in PLAN)))
    assert not holds_any(counting, PLAN)


def test_records_of_other_recipes_are_not_read(counting):
    put(counting, range(4), make_plan(generator_fingerprint="f1"))
    put(counting, range(3))
    assert numbers(counting) == [0, 1, 2]
    assert counting.read == 3


def test_records_of_other_plans_are_not_read_again(counting):
    put(counting, range(10), make_plan(seed=8))
    assert numbers(counting) == []
    counting.read = 0
    assert numbers(counting) == []
    assert counting.read == 0


def test_a_few_new_records_are_not_worth_a_new_file(store, monkeypatch):
    monkeypatch.setattr(module, "_LEAST_NEW", 5)
    put(store, range(4))
    assert numbers(store) == [0, 1, 2, 3]
    assert not path_of(store, PLAN).exists()
    put(store, range(4, 8))
    numbers(store)
    assert path_of(store, PLAN).exists()


def test_what_was_evicted_since_is_not_held(store):
    put(store, range(10))
    numbers(store)
    store.evict(Keys((PLAN[3].key, PLAN[9].key)))
    assert numbers(store) == [0, 1, 2, 4, 5, 6, 7, 8]
    put(store, [3])
    assert numbers(store) == [0, 1, 2, 4, 5, 6, 7, 8, 3]


def test_another_cache_in_the_same_place_is_read_from_the_start(tmp_path):
    with Store(tmp_path / "old").open() as old:
        put(old, range(10))
        numbers(old)
        content = path_of(old, PLAN).read_bytes()
    with Store(tmp_path / "new").open() as new:
        put(new, [11, 12])
        path_of(new, PLAN).parent.mkdir()
        path_of(new, PLAN).write_bytes(content)
        assert numbers(new) == [11, 12]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:-3],
        lambda content: content[:-1] + bytes([content[-1] ^ 1]),
        lambda content: content.replace(b'"version": 1', b'"version": 2'),
        lambda content: b"[]\n" + content,
        lambda content: b"\xff\xfe" + content,
        lambda content: json.dumps({"version": 1}).encode() + b"\n",
    ],
)
def test_a_file_that_is_broken_or_of_another_version_is_written_anew(store, damage):
    put(store, range(5))
    expected = numbers(store)
    path = path_of(store, PLAN)
    content = path.read_bytes()
    path.write_bytes(damage(content))
    assert numbers(store) == expected
    assert path.read_bytes() == content


def test_a_store_that_is_only_read_writes_nothing(store):
    put(store, range(5))
    with Store(store.path, readonly=True) as reading:
        assert numbers(reading) == [0, 1, 2, 3, 4]
    assert not path_of(store, PLAN).parent.exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_no_error(store):
    put(store, range(5))
    store.path.chmod(0o500)
    assert numbers(store) == [0, 1, 2, 3, 4]


def test_only_the_newest_files_are_kept(store, monkeypatch):
    monkeypatch.setattr(module, "MOST_KEPT", 2)
    for seed in range(4):
        plan = make_plan(seed=seed)
        put(store, [0], plan)
        numbers(store, plan)
    assert len([*path_of(store, PLAN).parent.glob("*.held")]) == 2


def test_a_cache_that_is_not_there_holds_nothing_and_is_not_made(tmp_path):
    store = Store(tmp_path / "none")
    assert numbers(store) == numbers(store, ListedRequests([*PLAN])) == []
    assert not store.path.exists()


def test_lists_and_several_plans_are_looked_for_too(store):
    own = ListedRequests([*make_plan(seed=9)][:4])
    put(store, [2, 30])
    put(store, [3, 1], own)
    assert numbers(store, own) == [1, 3]
    assert numbers(store, Served([PLAN, own])) == [2, 30, len(PLAN) + 1, len(PLAN) + 3]


def test_what_comes_in_a_run_is_kept_for_the_next(counting):
    put(counting, range(4))
    memory = Memory(counting, Served([PLAN]), after=counting.position())
    put(counting, [9, 10])
    put(counting, [11], make_plan(seed=4))
    found = [memory.number_of(*row) for row in counting.requests(after=4)]
    assert found == [9, 10, None]
    memory.keep(counting.position())
    counting.read = 0
    assert numbers(counting) == [0, 1, 2, 3, 9, 10]
    assert counting.read == 0


def test_rejections_of_a_plan_are_found_by_their_requests(store):
    for plan, number in ((PLAN, 4), (PLAN, 8), (make_plan(seed=2), 5)):
        store.reject(plan[number].key, plan[number].to_fields(), Rejection(f"reason {number}"))
    store.reject(*_foreign(), Rejection("foreign"))
    reasons = {number: found.reason for number, found in rejected_of(store, PLAN).items()}
    assert reasons == {4: "reason 4", 8: "reason 8"}


def _foreign():
    entry = Entry({"made": "elsewhere"}, PIXELS)

    return request_key(entry.request), entry.request


def test_of_two_images_of_one_request_only_the_last_is_held(store):
    put(store, [0])
    numbers(store)
    store.evict(Keys((PLAN[0].key,)))
    put(store, [0])
    assert held_of(store, PLAN).rows["position"].tolist() == [2]
    assert numbers(store, replace_of(PLAN)) == [0]


def replace_of(plan):
    """The same plan, made anew."""
    return Plan([replace(part) for part in plan.parts], plan.images, plan.variants_per_image)
