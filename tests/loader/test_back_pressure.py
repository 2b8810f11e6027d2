"""The ratio of served to made images: Reverb's inequalities, and that it is kept."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mixing_samples import KEYS, PLAN, Setup, make_order, put

from online_aug.config import Config
from online_aug.loader.back_pressure import RateLimiter, limiter_of


def limiter(ratio=2.0, least=1, tolerance=5.0, max_ahead=4):
    return RateLimiter(
        samples_per_insert=ratio, min_inserts=least, tolerance=tolerance, max_ahead=max_ahead
    )


def configured(**mixing):
    return Config.model_validate({"mixing": mixing})


def can_insert(limiter, inserts, samples):
    """Return whether Reverb would insert one more image (reverb/cc/rate_limiter.cc)."""
    highest = limiter.min_inserts * limiter.samples_per_insert + limiter.tolerance
    if inserts + 1 <= limiter.min_inserts:
        return True
    return (inserts + 1) * limiter.samples_per_insert - samples <= highest


ratios = st.sampled_from([0.25, 0.5, 1.0, 2.0, 3.0, 8.0])  # exact in binary, no rounding


@given(
    ratio=ratios,
    least=st.integers(1, 9),
    more=st.integers(0, 20),
    inserts=st.integers(0, 60),
    samples=st.integers(0, 200),
)
def test_there_is_room_exactly_when_reverb_would_insert(ratio, least, more, inserts, samples):
    ours = limiter(ratio, least, max(1.0, ratio) + more)
    assert (ours.room(inserts, samples) > 0) == can_insert(ours, inserts, samples)


@given(
    ratio=ratios,
    least=st.integers(1, 9),
    inserts=st.integers(0, 60),
    samples=st.integers(0, 200),
)
def test_either_serving_or_generating_can_always_continue(ratio, least, inserts, samples):
    ours = limiter(ratio, least, max(1.0, ratio))
    assert ours.can_sample(inserts, samples) or can_insert(ours, inserts, samples)


def test_nothing_is_served_before_there_are_enough():
    ours = limiter(least=3)
    assert [ours.can_sample(n, 0) for n in range(5)] == [False, False, False, True, True]


def test_without_room_the_process_is_told_a_count_that_makes_it_pause():
    ours = limiter(ratio=2.0, tolerance=4.0, max_ahead=10)
    for samples in range(0, 40, 5):
        for inserts in range(20):
            is_paused = inserts - ours.paid(inserts, inserts, samples) >= ours.max_ahead
            assert is_paused == (ours.room(inserts, samples) <= 0)


def test_the_default_tolerance_is_wide_enough_for_both_sides():
    for ratio in (0.1, 1.0, 20.0):
        assert limiter_of(configured(samples_per_insert=ratio)).tolerance >= max(1, ratio)


def test_without_a_ratio_there_is_no_limiter():
    assert limiter_of(configured()) is None


@pytest.mark.parametrize("world_size", [1, 2])
def test_all_ranks_together_serve_no_image_more_often_than_the_ratio_allows(store, world_size):
    put(store, range(10))
    ours, samples = limiter(ratio=2.0, tolerance=4.0), 0
    for rank in range(world_size):
        sampler = Setup(
            store,
            probability=1,
            rank=rank,
            world_size=world_size,
            order=make_order(repeats=20),
            limiter=ours,
        ).sampler()
        list(sampler)
        samples += sampler.pool.samples
    # 10 * 2 - samples stays at or above 1 * 2 - 4
    assert samples == 22


def test_serving_continues_after_more_images_were_made(store):
    put(store, range(2))
    ours = limiter(ratio=1.0, tolerance=1.0)
    sampler = Setup(store, probability=1, order=make_order(repeats=20), limiter=ours).sampler()
    batches = iter(sampler)
    counts = []
    for number in range(2, 7):
        next(batches)
        counts.append(sampler.pool.samples)
        put(store, [number])
    assert counts == [2, 3, 4, 5, 6]


def test_an_image_counts_as_made_once_whoever_made_it_and_when(store):
    put(store, range(4))
    pool = Setup(store).sampler().pool
    assert pool.inserts == 4
    put(store, [4, 5])
    pool.refresh()
    pool.refresh()
    assert pool.inserts == 6


def test_the_loader_says_how_often_an_image_was_served(store):
    put(store, range(len(PLAN)))
    loader = Setup(store, probability=0.5).loader()
    served = sum((batch.served.cached for batch in loader), 0)
    assert loader.samples_per_insert == served / len(KEYS)
