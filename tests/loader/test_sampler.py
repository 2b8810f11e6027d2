"""The filling of slots: coverage, ranks, freshness, limits, and `wait` as a pure function."""

from collections import Counter
from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mixing_samples import IMAGES, KEYS, PLAN, Setup, epochs, fixed, make_order, make_pool, put
from request_samples import digest_of

from cache import Keys, Oldest, Store
from online_aug.loader.slots import Kind
from online_aug.seeding import numpy_rng

RNG = numpy_rng("test")


def everything(pool, most=200):
    """Take samples from a pool until it is empty, at most `most`."""
    taken = []
    while len(taken) < most and (sample := pool.take(RNG)) is not None:
        taken.append(sample)
    return taken


def joined(batches_by_rank):
    """Join the batches of the ranks to global ones."""
    return [list(chain(*parts)) for parts in zip(*batches_by_rank, strict=True)]


@given(st.integers(1, 40), st.integers(1, 3), st.integers(1, 4), st.integers(0, 5))
def test_every_image_is_served_once_a_repeat(batch_size, steps, repeats, epoch):
    images = batch_size * steps
    order = make_order(num_images=images, batch_size=batch_size, repeats=repeats)
    passes = order.indices(epoch).reshape(repeats, images)
    assert np.array_equal(np.sort(passes, axis=1), np.tile(np.arange(images), (repeats, 1)))


@given(st.integers(1, 60), st.integers(1, 3), st.integers(1, 20))
def test_an_epoch_leaves_out_less_than_a_batch_and_serves_nothing_too_often(n, repeats, size):
    order = make_order(num_images=n, batch_size=size, repeats=repeats)
    indices = order.indices(0)
    assert len(indices) == order.steps * size
    assert n * repeats - len(indices) < size
    if n * repeats >= size:
        assert max(Counter(indices.tolist()).values()) <= repeats


def test_a_set_smaller_than_a_batch_still_makes_one():
    order = make_order(num_images=3, batch_size=8, repeats=1)
    assert order.steps == 1
    assert sorted(np.bincount(order.indices(0)).tolist()) == [2, 3, 3]


def test_epochs_passes_and_seeds_have_orders_of_their_own():
    orders = [make_order(seed=seed).indices(epoch) for seed in (0, 1) for epoch in (0, 1)]
    passes = [order[start : start + IMAGES].tolist() for order in orders for start in (0, IMAGES)]
    assert len({tuple(one) for one in passes}) == len(passes)


@pytest.mark.parametrize("world_size", [2, 4, 8])
def test_global_batches_are_the_same_for_any_number_of_ranks(store, world_size):
    alone = epochs(Setup(store).sampler(), 2)
    ranks = [Setup(store, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert joined([epochs(rank.sampler(), 2) for rank in ranks]) == alone


@pytest.mark.parametrize("world_size", [2, 4])
def test_waiting_serves_the_same_images_on_any_number_of_ranks(store, world_size):
    put(store, range(len(PLAN)))
    setup = {"starvation": "wait", "wait_for": lambda number: True}
    alone = epochs(Setup(store, **setup).sampler(), 2)
    ranks = [Setup(store, rank=r, world_size=world_size, **setup) for r in range(world_size)]
    assert joined([epochs(rank.sampler(), 2) for rank in ranks]) == alone


@pytest.mark.parametrize("probability", [0.1, 0.3, 0.9])
def test_the_share_of_synthetic_slots_is_the_configured_one(store, probability):
    order = make_order(num_images=500, batch_size=50, repeats=4)
    batches = epochs(Setup(store, probability=probability, order=order).sampler(), 1)
    slots = list(chain(*batches))
    share = np.mean([slot.kind is not Kind.REAL for slot in slots])
    spread = np.sqrt(probability * (1 - probability) / len(slots))
    assert abs(share - probability) < 5 * spread


@pytest.mark.parametrize(("probability", "kinds"), [(0, {Kind.REAL}), (1, {Kind.CACHED})])
def test_all_or_nothing_is_synthetic_at_the_ends_of_the_range(store, probability, kinds):
    put(store, [0])
    batches = epochs(Setup(store, probability=probability).sampler(), 1)
    assert {slot.kind for slot in chain(*batches)} == kinds


def test_a_slot_without_a_synthetic_sample_is_starved_and_gets_the_real_image(store):
    setup = Setup(store, probability=1)
    slots = list(chain(*epochs(setup.sampler(), 1)))
    assert {(slot.kind, slot.number) for slot in slots} == {(Kind.STARVED, -1)}
    assert [slot.index for slot in slots] == setup.order.indices(0).tolist()


def test_images_cached_before_the_start_are_drawn_evenly(store):
    put(store, range(10))
    pool = make_pool(store)
    taken = [pool.take(RNG) for _ in range(1000)]
    assert {kind for kind, _ in taken} == {Kind.CACHED}
    counts = np.bincount([number for _, number in taken], minlength=10)
    assert (np.abs(counts - 100) < 5 * np.sqrt(90)).all()


def test_fresh_images_come_first_in_the_order_they_were_made_and_once(store):
    put(store, [1, 2])
    pool = make_pool(store)
    put(store, [9, 4, 7])
    pool.refresh()
    taken = [pool.take(RNG) for _ in range(100)]
    assert taken[:3] == [(Kind.FRESH, 9), (Kind.FRESH, 4), (Kind.FRESH, 7)]
    assert {kind for kind, _ in taken[3:]} == {Kind.CACHED}
    assert {number for _, number in taken[3:]} == {1, 2, 4, 7, 9}


def test_an_image_that_comes_in_the_middle_of_an_epoch_is_served_in_the_next_batch(store):
    batches = iter(Setup(store, probability=1).sampler())
    assert {slot.kind for slot in next(batches)} == {Kind.STARVED}
    put(store, [5])
    assert [(s.kind, s.number) for s in next(batches)] == [(Kind.FRESH, 5)] + [(Kind.CACHED, 5)] * 7


def test_an_image_that_comes_while_the_run_starts_is_fresh_and_offered_once(store):
    class Arriving:
        """A cache into which another process puts an image right before the look-up."""

        def __getattr__(self, name):
            if name == "requests":
                put(store, [3])
            return getattr(store, name)

        def __len__(self):
            return len(store)

    pool = make_pool(Arriving(), limit=2)
    pool.refresh()
    assert everything(pool) == [(Kind.FRESH, 3), (Kind.CACHED, 3)]


def test_images_of_other_recipes_are_not_served(store):
    pool = make_pool(store, plan=PLAN[:4])
    put(store, [4, 5, 6])
    pool.refresh()
    assert pool.take(RNG) is None


@pytest.mark.parametrize("world_size", [2, 3])
def test_an_image_is_fresh_on_one_rank_alone_by_its_place_in_the_log(store, world_size):
    put(store, [20, 21])
    pools = [make_pool(store, rank=r, world_size=world_size) for r in range(world_size)]
    put(store, range(12))
    for rank, pool in enumerate(pools):
        pool.refresh()
        taken = [pool.take(RNG) for _ in range(60)]
        fresh = [number for kind, number in taken if kind is Kind.FRESH]
        made_at = {key: position for position, key in store.tail()}
        assert fresh == [n for n in range(12) if made_at[KEYS[n]] % world_size == rank]
        assert all(kind is Kind.FRESH for kind, _ in taken[: len(fresh)])


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_no_image_is_served_more_often_than_allowed(store, limit):
    put(store, range(6))
    pool = make_pool(store, limit=limit)
    put(store, range(6, 10))
    pool.refresh()
    counts = Counter(number for _, number in everything(pool))
    assert counts == dict.fromkeys(range(10), limit)


@pytest.mark.parametrize("limit", [1, 2, 3, 5])
@pytest.mark.parametrize("world_size", [2, 3])
def test_the_limit_counts_what_all_ranks_serve_together(store, limit, world_size):
    put(store, range(5))
    pools = [
        make_pool(store, limit=limit, rank=r, world_size=world_size) for r in range(world_size)
    ]
    put(store, range(5, 12))
    counts = Counter()
    for pool in pools:
        pool.refresh()
        counts.update(number for _, number in everything(pool))
    assert counts == dict.fromkeys(range(12), limit)


@pytest.mark.parametrize("limit", [2, 3])
def test_the_ranks_of_a_node_have_the_images_of_its_cache_to_themselves(store, limit):
    pools = [
        make_pool(store, limit=limit, rank=rank, world_size=4, local=(rank - 2, 2))
        for rank in (2, 3)
    ]
    put(store, range(12))
    fresh, counts = Counter(), Counter()
    for pool in pools:
        pool.refresh()
        taken = everything(pool)
        fresh.update(number for kind, number in taken if kind is Kind.FRESH)
        counts.update(number for _, number in taken)
    assert fresh == dict.fromkeys(range(12), 1)
    assert counts == dict.fromkeys(range(12), limit)


def served(batches):
    return [(slot.position, slot.index, slot.number) for batch in batches for slot in batch]


def waiting(store, wait_for, **changes):
    return epochs(Setup(store, starvation="wait", wait_for=wait_for, **changes).sampler(), 2)


def test_waiting_serves_a_pure_function_of_the_seed_whatever_the_cache_holds(tmp_path):
    # Full, empty and filled on demand, half full, and filled in another order.
    stores = [Store(tmp_path / str(number)).open() for number in range(4)]
    put(stores[0], range(len(PLAN)))
    put(stores[2], range(0, len(PLAN), 2))
    late = list(np.random.default_rng(0).permutation(len(PLAN)))

    def make_others_first(number):
        while not stores[3].contains([KEYS[number]])[0]:
            put(stores[3], [late.pop()])
        return True

    def made_on_demand(store):
        return lambda number: put(store, [number]) or True

    plans = [
        waiting(stores[0], made_on_demand(stores[0])),
        waiting(stores[1], made_on_demand(stores[1])),
        waiting(stores[2], made_on_demand(stores[2])),
        waiting(stores[3], make_others_first),
    ]
    assert len({tuple(served(batches)) for batches in plans}) == 1
    assert served(waiting(stores[0], make_others_first, order=make_order(seed=1))) != served(
        plans[0]
    )


def test_waiting_goes_through_the_plan_in_order(store):
    put(store, range(len(PLAN)))
    numbers = [n for *_, n in served(waiting(store, lambda number: True)) if n >= 0]
    assert len(numbers) > len(PLAN) // 2
    assert numbers == [turn % len(PLAN) for turn in range(len(numbers))]


def test_waiting_distinguishes_fresh_from_cached_images(store):
    put(store, range(0, len(PLAN), 2))
    batches = waiting(store, lambda number: put(store, [number]) or True)
    kinds = {slot.number % 2: slot.kind for slot in chain(*batches) if slot.number >= 0}
    assert kinds == {0: Kind.CACHED, 1: Kind.FRESH}


def test_waiting_for_a_rejected_image_serves_the_real_one(store):
    batches = waiting(store, lambda number: number % 3 != 0 and (put(store, [number]) or True))
    planned = [slot for slot in chain(*batches) if slot.kind is not Kind.REAL]
    for turn, slot in enumerate(planned):
        if turn % len(PLAN) % 3 == 0:
            assert (slot.kind, slot.number) == (Kind.STARVED, -1)
        else:
            assert slot.number == turn % len(PLAN)


def test_waiting_serves_no_image_more_often_than_allowed(store):
    put(store, range(len(PLAN)))
    order = make_order(repeats=4)
    batches = waiting(store, lambda n: True, probability=1, limit=2, order=order)
    counts = Counter(number for *_, number in served(batches))
    assert counts.pop(-1) == 8 * IMAGES - 2 * len(PLAN)
    assert counts == dict.fromkeys(range(len(PLAN)), 2)


def test_an_evicted_image_is_not_served_and_comes_back_when_it_is_made_again(store):
    put(store, [3])
    pool = make_pool(store)
    put(store, [4, 5])
    pool.refresh()
    store.evict(Keys((KEYS[3], KEYS[4])))
    rng = np.random.default_rng(0)
    taken = [pool.take(rng) for _ in range(6)]
    assert taken == [(Kind.FRESH, 5)] + [(Kind.CACHED, 5)] * 5
    store.evict(Oldest())
    assert pool.take(rng) is None
    put(store, [3])
    pool.refresh()
    assert pool.take(rng) == (Kind.FRESH, 3)


def test_an_image_made_again_after_an_unnoticed_eviction_is_not_drawn_twice_as_often(store):
    put(store, [3, 7])
    pool = make_pool(store)
    rng = np.random.default_rng(0)
    assert pool.take(rng)[0] is Kind.CACHED
    store.evict(Keys((KEYS[3],)))
    put(store, [3])
    pool.refresh()
    drawn = [number for _, number in (pool.take(rng) for _ in range(2001))]
    assert 900 < drawn.count(3) < 1100


def test_an_image_made_twice_before_it_is_served_is_fresh_once(store):
    pool = make_pool(store)
    put(store, [3, 7])
    pool.refresh()
    store.evict(Keys((KEYS[3],)))
    put(store, [3])
    pool.refresh()
    assert [pool.take(RNG) for _ in range(2)] == [(Kind.FRESH, 3), (Kind.FRESH, 7)]
    assert pool.take(RNG)[0] is Kind.CACHED


@pytest.mark.parametrize("policy", ["local", "concat"])
@pytest.mark.parametrize("starvation", ["substitute", "wait"])
def test_a_synthetic_sample_is_made_from_the_image_whose_slot_it_fills(store, policy, starvation):
    put(store, range(len(PLAN)))
    setup = Setup(store, policy=policy, starvation=starvation, wait_for=lambda number: True)
    slots = [slot for slot in chain(*epochs(setup.sampler(), 3)) if slot.kind is not Kind.REAL]
    assert len(slots) > IMAGES
    assert all(PLAN[slot.number].source_digest == digest_of(slot.index) for slot in slots)
    assert len({slot.number for slot in slots}) > IMAGES  # more than one variant of each


@pytest.mark.parametrize("policy", ["local", "concat"])
def test_an_image_without_a_variant_yet_is_served_itself(store, policy):
    put(store, [4])
    slots = list(chain(*epochs(Setup(store, policy=policy).sampler(), 1)))
    made = {slot.index for slot in slots if slot.kind is Kind.CACHED}
    assert [digest_of(index) for index in made] == [PLAN[4].source_digest]
    assert {slot.kind for slot in slots} == {Kind.REAL, Kind.CACHED, Kind.STARVED}


def test_a_fresh_variant_comes_first_and_an_image_is_used_up_for_itself_alone(store):
    variants = make_pool(store).variants(digest_of(3))
    put(store, [variants[0]])
    pool = make_pool(store, limit=1)
    put(store, [variants[1], *range(5)])
    pool.refresh()
    taken = [pool.take(RNG, variants) for _ in range(3)]
    assert taken == [(Kind.FRESH, variants[1]), (Kind.CACHED, variants[0]), None]
    assert pool.take(RNG) is not None


@given(st.integers(1, 30), st.floats(0, 0.9), st.integers(1, 3), st.integers(0, 3))
def test_added_samples_leave_every_real_image_in_the_epoch(images, share, repeats, epoch):
    settings = {"num_images": images, "batch_size": 1, "repeats": repeats, "adds": True}
    order = make_order(probability=fixed(share), **settings)
    is_added = order.is_synthetic(epoch)
    real = order.indices(epoch)[~is_added]
    assert np.array_equal(np.bincount(real, minlength=images), np.full(images, repeats))
    assert is_added.sum() == repeats * round(images * share / (1 - share))


@pytest.mark.parametrize("policy", ["local", "concat"])
def test_waiting_for_variants_does_not_depend_on_the_number_of_ranks(store, policy):
    put(store, range(len(PLAN)))
    setup = {"starvation": "wait", "policy": policy, "wait_for": lambda number: True}
    alone = epochs(Setup(store, **setup).sampler(), 2)
    ranks = [Setup(store, rank=rank, world_size=2, **setup) for rank in range(2)]
    assert joined([epochs(rank.sampler(), 2) for rank in ranks]) == alone
