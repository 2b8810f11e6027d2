"""What a slot asks for: every generated image in turn with `concat`, rare classes more often."""

from collections import Counter
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mixing_samples import IMAGES, PLAN, Setup, epochs, make_order, make_pool, put
from request_samples import CLASSES, digest_of

from online_aug.config.sections import MixingConfig
from online_aug.loader.choices import ByClass, Union
from online_aug.loader.sampler import BatchSampler, Mixing
from online_aug.loader.slots import Kind
from online_aug.planning import ListedRequests
from online_aug.seeding import numpy_rng

VARIANTS = len(PLAN) // IMAGES
WHOLE = VARIANTS / (VARIANTS + 1)
"""Share with which each generated image is added once."""


def served(slots):
    return Counter(slot.number for slot in slots if slot.number >= 0)


def concat(store, **changes):
    """One pass an epoch, in batches that leave nothing out."""
    order = make_order(batch_size=8, repeats=1)
    settings = {"policy": "concat", "probability": WHOLE, "order": order, **changes}
    return Setup(store, **settings)


@pytest.mark.parametrize("starvation", ["substitute", "wait"])
def test_concat_serves_every_real_and_every_generated_image_once_an_epoch(store, starvation):
    put(store, range(len(PLAN)))
    setup = concat(store, starvation=starvation, wait_for=lambda number: True)
    sampler = setup.sampler()
    for epoch in range(3):
        sampler.epoch = epoch
        slots = list(chain(*sampler))
        assert served(slots) == dict.fromkeys(range(len(PLAN)), 1)
        real = Counter(slot.index for slot in slots if slot.kind is Kind.REAL)
        assert real == dict.fromkeys(range(IMAGES), 1)


def test_the_order_of_the_union_is_by_seed_and_epoch(store):
    put(store, range(len(PLAN)))
    orders = [
        [slot.number for slot in chain(*epochs(setup.sampler(), 2))]
        for setup in (concat(store), concat(store, order=make_order(repeats=1, seed=1)))
    ]
    half = len(orders[0]) // 2
    parts = [part[start : start + half] for part in orders for start in (0, half)]
    assert len({tuple(part) for part in parts}) == 4
    assert orders[0] == [slot.number for slot in chain(*epochs(concat(store).sampler(), 2))]


def test_a_smaller_share_serves_every_generated_image_before_any_comes_again(store):
    put(store, range(len(PLAN)))
    slots = chain(*epochs(concat(store, probability=0.5).sampler(), 2 * VARIANTS))
    assert served(slots) == dict.fromkeys(range(len(PLAN)), 2)


def test_a_generated_image_that_is_not_there_yet_is_no_other_one(store):
    put(store, [0, 1, 5])
    slots = list(chain(*epochs(concat(store).sampler(), 1)))
    assert served(slots) == {0: 1, 1: 1, 5: 1}
    missing = Counter(digest_of(slot.index) for slot in slots if slot.kind is Kind.STARVED)
    there = Counter(PLAN[number].source_digest for number in (0, 1, 5))
    assert missing + there == Counter(request.source_digest for request in PLAN)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=12), st.integers(0, 3))
def test_images_with_unequal_numbers_of_variants_are_all_in_the_union(counts, seed):
    own = {str(image): [10 * image + k for k in range(n)] for image, n in enumerate(counts)}
    union = Union([*own], np.array(counts), own.__getitem__, seed)
    assert len(union) == sum(counts)
    if not len(union):
        return
    images, variants = union.images(np.arange(2 * len(union)))
    found = [union.request(int(i), int(v)) for i, v in zip(images, variants, strict=True)]
    for part in (found[: len(union)], found[len(union) :]):
        assert sorted(part) == sorted(chain(*own.values()))


def of_class(pool, sizes, balance):
    by_class = ByClass(sizes, balance)
    pool.group(by_class)
    return by_class


def test_classes_are_served_in_proportion_to_one_over_their_images_and_one(store):
    put(store, range(len(PLAN)))
    pool, sizes = make_pool(store), [1 + 4 * label for label in range(CLASSES)]
    by_class, rng = of_class(pool, sizes, 1.0), numpy_rng("test")
    labels = Counter(PLAN[by_class.take(rng, pool.take)[1]].target_label for _ in range(4000))
    there = {request.target_label for request in PLAN}
    whole = sum(1 / (sizes[label] + 1) for label in there)
    for label in there:
        assert labels[label] / 4000 == pytest.approx(1 / (sizes[label] + 1) / whole, abs=0.03)


def test_a_class_that_has_none_ready_gives_its_turn_to_another(store):
    first = PLAN[0].target_label
    numbers = [n for n, request in enumerate(PLAN) if request.target_label == first]
    put(store, numbers[:2])
    pool = make_pool(store)
    by_class = of_class(pool, [100] * CLASSES, 1.0)
    taken = {by_class.take(numpy_rng("test", k), pool.take)[1] for k in range(20)}
    assert taken == set(numbers[:2])


def test_nothing_ready_is_nothing_taken(store):
    pool = make_pool(store)
    assert of_class(pool, [1] * CLASSES, 1.0).take(numpy_rng("test"), pool.take) is None


def test_images_that_come_later_are_drawn_by_class_too(store):
    put(store, [3, 0])
    pool = make_pool(store)
    by_class = of_class(pool, [1] * CLASSES, 1.0)
    put(store, [9, 4])
    pool.refresh()
    newer = [replace(request, saliency_version="b") for request in PLAN[:2]]
    put(store, [1], newer)
    pool.extend(ListedRequests(newer), oldest=4)
    taken = {by_class.take(numpy_rng("test", k), pool.take)[1] for k in range(40)}
    assert taken == {4, 9, len(PLAN) + 1}


def test_the_sampler_draws_by_class(store):
    put(store, range(len(PLAN)))
    setup = Setup(store, probability=1.0)
    pool, order = make_pool(store), setup.chosen_order
    filler = Mixing(order, pool, MixingConfig(class_balance=1))
    rare = PLAN[0].target_label
    filler.by_class = of_class(pool, [0 if k == rare else 10**6 for k in range(CLASSES)], 1.0)
    slots = list(chain(*epochs(BatchSampler(order, pool, filler), 1)))
    assert {PLAN[slot.number].target_label for slot in slots} == {rare}
