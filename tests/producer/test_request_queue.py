"""The order of requests, and the queue that claims them in a real cache."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from request_samples import CLASSES, digest_of, make_plan, make_request, make_sources

from cache import Entry, Owner, Rejection
from online_aug.config.sections import ScheduleConfig
from online_aug.producer import request_queue
from online_aug.producer.request_queue import (
    LEAST_LOSS_WEIGHT,
    RequestOrder,
    RequestQueue,
    Stripe,
    part_of,
    weights_by_loss,
)

PLAN = make_plan(make_sources(60), 2)
WEIGHTS = [8.0, 4.0, 2.0, 1.0]
few_examples = hypothesis_settings(max_examples=12)  # each digests hundreds of requests
ME = Owner.current()
OTHER = replace(ME, pid=1, started=0)


def take_all(order, count=7):
    taken = []
    while some := order.take(count):
        taken += some
    return taken


def of_class(label, count):
    return [make_request(target_label=label, noise_seed=number) for number in range(count)]


def of_image(number, variant):
    return make_request(source_digest=digest_of(number), variant=variant)


def even_plan(count=60):
    """Return requests of every class, class by class."""
    return [request for label in range(CLASSES) for request in of_class(label, count)]


@few_examples
@given(st.integers(1, 200))
def test_without_weights_requests_come_in_the_order_of_the_plan(count):
    assert take_all(RequestOrder(PLAN), count) == PLAN


@given(st.integers(1, 5))
def test_every_request_is_in_exactly_one_part(count):
    stripes = [Stripe(number=number, count=count) for number in range(count)]
    assert all(sum(stripe.holds(request) for stripe in stripes) == 1 for request in PLAN)


@few_examples
@given(st.integers(1, 4), st.integers(1, 4), st.data())
def test_the_parts_of_a_part_are_that_part(machines, devices, data):
    machine = Stripe(number=data.draw(st.integers(0, machines - 1)), count=machines)
    parts = [machine.split(number, devices) for number in range(devices)]
    for request in PLAN:
        assert sum(part.holds(request) for part in parts) == machine.holds(request)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_the_own_part_comes_first_and_then_all_of_the_rest(weights):
    stripe = Stripe(number=1, count=3)
    taken = take_all(RequestOrder(PLAN, stripe, weights))
    own = [request for request in PLAN if stripe.holds(request)]
    assert set(taken[: len(own)]) == set(own)
    assert Counter(taken) == Counter(PLAN)


def test_two_processes_begin_with_different_requests_and_end_with_the_same():
    first, second = (take_all(RequestOrder(PLAN, Stripe(number=n, count=2))) for n in (0, 1))
    assert not set(first[:20]) & set(second[:20])
    assert set(first) == set(second)


@few_examples
@given(st.lists(st.floats(0.1, 10), min_size=CLASSES, max_size=CLASSES), st.integers(1, 60))
def test_classes_get_turns_in_proportion_to_their_weights(weights, count):
    taken = Counter(
        request.target_label for request in RequestOrder(even_plan(), None, weights).take(count)
    )
    for label, weight in enumerate(weights):
        ahead = taken[label] - count * weight / sum(weights)
        # Less than a turn behind; ahead by what the others are behind, together.
        assert -1 - 1e-6 <= ahead <= CLASSES - 1 + 1e-6


@few_examples
@given(st.lists(st.floats(0.1, 10), min_size=3, max_size=3), st.integers(1, 40))
def test_images_get_turns_in_proportion_to_their_weights_and_others_as_weight_1(weights, count):
    plan = [of_image(number, variant) for number in range(4) for variant in range(60)]
    named = {digest_of(number): weight for number, weight in enumerate(weights)}
    taken = Counter(
        request.source_digest for request in RequestOrder(plan, None, named).take(count)
    )
    every = [*weights, 1.0]
    for number, weight in enumerate(every):
        ahead = taken[digest_of(number)] - count * weight / sum(every)
        assert -1 - 1e-6 <= ahead <= len(every) - 1 + 1e-6


def test_images_of_one_weight_have_one_turn_each_before_any_has_two():
    taken = take_all(RequestOrder(PLAN, None, {}))
    assert taken[:60] == PLAN[:60]
    assert {request.source_digest for request in taken[60:]} == {digest_of(n) for n in range(60)}


def test_requests_of_one_image_stay_in_the_order_of_the_plan():
    taken = take_all(RequestOrder(PLAN, None, {digest_of(0): 7.0, digest_of(3): 0.2}))
    assert Counter(taken) == Counter(PLAN)
    for digest in {request.source_digest for request in PLAN}:
        expected = [request for request in PLAN if request.source_digest == digest]
        assert [request for request in taken if request.source_digest == digest] == expected


def test_requests_of_one_class_stay_in_the_order_of_the_plan():
    taken = take_all(RequestOrder(PLAN, None, WEIGHTS))
    for label in range(CLASSES):
        expected = [request for request in PLAN if request.target_label == label]
        assert [request for request in taken if request.target_label == label] == expected


def test_a_class_without_requests_leaves_its_turns_to_the_others():
    plan = of_class(0, 3) + of_class(3, 12)
    labels = [request.target_label for request in take_all(RequestOrder(plan, None, WEIGHTS))]
    assert labels[:3] == [0, 0, 0]
    assert labels[3:] == [3] * 12


def test_new_weights_count_from_then_on():
    order = RequestOrder(even_plan(), None, WEIGHTS)
    order.take(30)
    order.reweigh(WEIGHTS[::-1])
    taken = Counter(request.target_label for request in order.take(60))
    assert taken[3] > taken[2] > taken[1] > taken[0]


def test_requests_put_back_come_before_the_others_of_their_class():
    order = RequestOrder(even_plan(), None, WEIGHTS)
    taken = order.take(20)
    order.put_back(taken)
    assert len(order) == len(even_plan())
    again = [request for request in take_all(order) if request.target_label == 0]
    assert again == of_class(0, 60)


def test_weights_are_refused_if_there_were_none_before():
    with pytest.raises(ValueError, match="^weights must replace others"):
        RequestOrder(PLAN).reweigh(WEIGHTS)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_the_order_is_the_same_each_time(weights):
    assert take_all(RequestOrder(PLAN, None, weights)) == take_all(
        RequestOrder(PLAN, None, weights)
    )


def test_a_machine_that_does_not_help_has_only_its_own_part():
    parts = [
        part_of(PLAN, ScheduleConfig(stripe=number, stripes=3, helps=False)) for number in range(3)
    ]
    assert Counter(request for part in parts for request in part) == Counter(PLAN)
    assert part_of(PLAN, ScheduleConfig(stripe=1, stripes=3)) == PLAN


losses = st.none() | st.floats(0, 1e6)


@given(st.lists(losses, min_size=1))
def test_weights_by_loss_are_above_0_and_every_class_gets_something(given_losses):
    weights = weights_by_loss(given_losses)
    assert len(weights) == len(given_losses)
    assert min(weights) >= LEAST_LOSS_WEIGHT


@given(st.lists(st.floats(1, 1e6), min_size=2))
def test_a_class_with_more_loss_never_weighs_less(given_losses):
    pairs = sorted(zip(given_losses, weights_by_loss(given_losses), strict=True))
    assert [weight for _, weight in pairs] == sorted(weight for _, weight in pairs)


def test_a_class_that_was_not_seen_counts_as_the_mean():
    assert weights_by_loss([3.0, None, 1.0]) == [1.5, 1.0, 0.5]


@pytest.mark.parametrize("nothing", [[None, None], [0.0, 0.0], [0.0, None]])
def test_without_a_loss_all_classes_weigh_alike(nothing):
    assert weights_by_loss(nothing) == [1.0, 1.0]


SMALL = make_plan(make_sources(24), 2)


def keys(requests):
    return [request.key for request in requests]


def store_all(store, requests):
    image = torch.zeros(8, 8, 3, dtype=torch.uint8).numpy()
    store.put_many([Entry(request.to_fields(), image) for request in requests])


@pytest.fixture
def queue(store):
    return RequestQueue(SMALL, store, ME)


def test_the_queue_gives_out_all_requests_in_the_order_of_the_plan(queue):
    assert take_all(queue, 5) == SMALL


def test_requests_are_claimed_before_they_are_given_out(store, queue):
    taken = queue.take(3)
    assert store.claim(keys(taken), OTHER) == []


def test_only_a_few_requests_ahead_are_claimed(store, queue):
    queue.take(1)
    assert len(store.claim(keys(SMALL), OTHER)) == len(SMALL) - request_queue.CLAIM_BATCH


def test_stored_and_rejected_requests_are_skipped_and_only_stored_ones_count_as_reused(
    store, queue
):
    store_all(store, SMALL[:7])
    store.reject(SMALL[7].key, SMALL[7].to_fields(), Rejection("flat"))
    assert take_all(queue, 5) == SMALL[8:]
    assert queue.reused == 7


def test_images_that_another_process_made_meanwhile_count_as_reused(store, queue):
    first = queue.take(1)
    store_all(store, SMALL[-4:])
    assert take_all(queue, 5) == SMALL[1:-4]
    for request in first + SMALL[1:-4]:
        queue.end(request)
    queue.look_again()
    assert queue.take(1) == []
    assert (queue.reused, queue.is_done) == (4, True)


def test_requests_that_others_have_claimed_are_given_out_when_they_give_them_up(store, queue):
    theirs = SMALL[3:9]
    store.claim(keys(theirs), OTHER)
    assert take_all(queue, 5) == SMALL[:3] + SMALL[9:]
    assert not queue.is_done
    store.release(keys(theirs), OTHER)
    queue.look_again()
    assert take_all(queue, 5) == theirs


def test_the_queue_is_done_when_all_requests_have_ended(queue):
    for request in take_all(queue, 5):
        assert not queue.is_done
        queue.end(request)
    assert queue.is_done


def test_requests_given_back_are_free_for_others_and_come_next_if_nobody_takes_them(store, queue):
    begun = queue.take(2)
    queue.give_back()
    assert len(store.claim(keys(SMALL), OTHER)) == len(SMALL) - len(begun)
    store.release(keys(SMALL), OTHER)
    assert take_all(queue, 5) == SMALL[2:]


def test_a_release_ends_all_claims(store, queue):
    queue.take(2)
    queue.release()
    assert store.stats()["claims_live"] == 0


def test_leases_are_renewed_before_they_end(store, queue, monkeypatch):
    now = 1000.0
    monkeypatch.setattr(request_queue.time, "monotonic", lambda: now)
    queue = RequestQueue(SMALL, store, ME)
    queue.take(2)
    asked = []
    claim = store.claim
    monkeypatch.setattr(store, "claim", lambda *args: asked.extend(args[0]) or claim(*args))
    now += request_queue.LEASE_S / 2 + 1
    queue.take(2)
    assert set(asked) == set(keys(SMALL[: request_queue.CLAIM_BATCH]))


def test_a_claim_that_another_process_has_taken_over_is_not_given_out(store, queue, monkeypatch):
    monkeypatch.setattr(request_queue, "LEASE_S", 1e-6)
    queue.take(2)
    theirs = store.claim(keys(SMALL[5:9]), OTHER)
    taken = take_all(queue, 5)
    assert theirs
    assert not set(theirs) & set(keys(taken))


def test_new_weights_change_the_order_of_requests_that_are_not_claimed(store):
    queue = RequestQueue(SMALL, store, ME, weights=[1e6, 1.0, 1.0, 1.0])
    first = queue.take(2)
    queue.reweigh([1.0, 1.0, 1.0, 1e6])
    rest = take_all(queue, 5)
    assert {request.target_label for request in first} == {0}
    claimed = rest[: request_queue.CLAIM_BATCH - len(first)]
    hard = [r for r in SMALL if r.target_label == 3 and r not in claimed]
    assert rest[len(claimed) : len(claimed) + len(hard)] == hard
    assert set(first + rest) == set(SMALL)


def test_processes_with_different_parts_meet_only_at_the_end(store):
    mine, theirs = (
        RequestQueue(SMALL, store, owner, Stripe(number=number, count=2))
        for number, owner in enumerate((ME, OTHER))
    )
    own = [request for request in SMALL if Stripe(number=0, count=2).holds(request)]
    taken = [request for _ in own for request in mine.take(1)]
    assert taken == own
    assert not set(take_all(theirs, 5)) & set(own)


def test_another_plan_ends_the_claims_on_the_first_and_keeps_count_of_reuse(store, queue):
    store_all(store, SMALL[:3])
    queue.take(2)
    queue.replace_plan(SMALL[20:])
    assert store.stats()["claims_live"] == 0
    assert take_all(queue, 5) == SMALL[20:]
    assert queue.reused == 3


def test_losses_change_the_order_of_this_plan_and_the_next(store):
    queue = RequestQueue([], store, ME, weights=[1.0] * CLASSES)
    queue.follow_losses([0.0, 0.0, 0.0, 9.0])
    queue.replace_plan(SMALL)
    hard = [request for request in SMALL if request.target_label == 3]
    assert queue.take(len(hard)) == hard
