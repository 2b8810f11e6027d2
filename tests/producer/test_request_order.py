"""The order of requests: own part first, turns by weight, found without listing the plan."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from request_samples import (
    CLASSES,
    digest_of,
    make_part,
    make_plan,
    make_request,
    make_sources,
)

from online_aug.config.sections import ScheduleConfig
from online_aug.planning import Images, ListedRequests, Plan
from online_aug.producer import request_order
from online_aug.producer.request_order import (
    LEAST_LOSS_WEIGHT,
    RequestOrder,
    Stripe,
    weights_by_loss,
)

PLAN = make_plan(make_sources(60), 2)
LISTED = ListedRequests(PLAN)
WEIGHTS = [8.0, 4.0, 2.0, 1.0]
few_examples = hypothesis_settings(max_examples=12)  # each digests hundreds of requests


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
    assert take_all(RequestOrder(ListedRequests(PLAN)), count) == PLAN


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
    taken = take_all(RequestOrder(ListedRequests(PLAN), stripe, weights))
    own = [request for request in PLAN if stripe.holds(request)]
    assert set(taken[: len(own)]) == set(own)
    assert Counter(taken) == Counter(PLAN)


def test_two_processes_begin_with_different_requests_and_end_with_the_same():
    first, second = (
        take_all(RequestOrder(ListedRequests(PLAN), Stripe(number=n, count=2))) for n in (0, 1)
    )
    assert not set(first[:20]) & set(second[:20])
    assert set(first) == set(second)


@few_examples
@given(st.lists(st.floats(0.1, 10), min_size=CLASSES, max_size=CLASSES), st.integers(1, 60))
def test_classes_get_turns_in_proportion_to_their_weights(weights, count):
    taken = Counter(
        request.target_label
        for request in RequestOrder(ListedRequests(even_plan()), None, weights).take(count)
    )
    for label, weight in enumerate(weights):
        ahead = taken[label] - count * weight / sum(weights)
        # Less than a turn behind; ahead by what the others are behind, together.
        assert -1 - 1e-6 <= ahead <= CLASSES - 1 + 1e-6


@few_examples
@given(st.lists(st.floats(0.1, 10), min_size=3, max_size=3), st.integers(1, 40))
def test_images_get_turns_in_proportion_to_their_weights_and_others_as_weight_1(weights, count):
    plan = [of_image(number, variant) for variant in range(60) for number in range(4)]
    named = {digest_of(number): weight for number, weight in enumerate(weights)}
    taken = Counter(
        request.source_digest
        for request in RequestOrder(ListedRequests(plan), None, named).take(count)
    )
    every = [*weights, 1.0]
    for number, weight in enumerate(every):
        ahead = taken[digest_of(number)] - count * weight / sum(every)
        assert -1 - 1e-6 <= ahead <= len(every) - 1 + 1e-6


def test_images_of_one_weight_have_one_turn_each_before_any_has_two():
    taken = take_all(RequestOrder(ListedRequests(PLAN), None, {}))
    assert taken[:60] == PLAN[:60]
    assert {request.source_digest for request in taken[60:]} == {digest_of(n) for n in range(60)}


def test_requests_of_one_image_stay_in_the_order_of_the_plan():
    taken = take_all(
        RequestOrder(ListedRequests(PLAN), None, {digest_of(0): 7.0, digest_of(3): 0.2})
    )
    assert Counter(taken) == Counter(PLAN)
    for digest in {request.source_digest for request in PLAN}:
        expected = [request for request in PLAN if request.source_digest == digest]
        assert [request for request in taken if request.source_digest == digest] == expected


def test_requests_of_one_class_stay_in_the_order_of_the_plan():
    taken = take_all(RequestOrder(ListedRequests(PLAN), None, WEIGHTS))
    for label in range(CLASSES):
        expected = [request for request in PLAN if request.target_label == label]
        assert [request for request in taken if request.target_label == label] == expected


def test_a_class_without_requests_leaves_its_turns_to_the_others():
    plan = of_class(0, 3) + of_class(3, 12)
    labels = [
        request.target_label
        for request in take_all(RequestOrder(ListedRequests(plan), None, WEIGHTS))
    ]
    assert labels[:3] == [0, 0, 0]
    assert labels[3:] == [3] * 12


def test_new_weights_count_from_then_on():
    order = RequestOrder(ListedRequests(even_plan()), None, WEIGHTS)
    order.take(30)
    order.reweigh(WEIGHTS[::-1])
    taken = Counter(request.target_label for request in order.take(60))
    assert taken[3] > taken[2] > taken[1] > taken[0]


def test_requests_put_back_come_before_the_others_of_their_class():
    order = RequestOrder(ListedRequests(even_plan()), None, WEIGHTS)
    taken = order.take(20)
    order.put_back(taken)
    again = [request for request in take_all(order) if request.target_label == 0]
    assert again == of_class(0, 60)


def test_weights_are_refused_if_there_were_none_before():
    with pytest.raises(ValueError, match="^weights must replace others"):
        RequestOrder(ListedRequests(PLAN)).reweigh(WEIGHTS)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_the_order_is_the_same_each_time(weights):
    assert take_all(RequestOrder(ListedRequests(PLAN), None, weights)) == take_all(
        RequestOrder(ListedRequests(PLAN), None, weights)
    )


def test_a_machine_that_does_not_help_has_only_its_own_part():
    parts = [
        take_all(RequestOrder(LISTED, Stripe.of(ScheduleConfig(stripe=n, stripes=3, helps=False))))
        for n in range(3)
    ]
    assert Counter(request for part in parts for request in part) == Counter(PLAN)
    helping = RequestOrder(LISTED, Stripe.of(ScheduleConfig(stripe=1, stripes=3)))
    assert Counter(take_all(helping)) == Counter(PLAN)


@given(st.integers(1, 4), st.booleans())
def test_the_processes_of_a_machine_that_does_not_help_make_its_part_together(count, has_weights):
    machine = Stripe.of(ScheduleConfig(stripe=1, stripes=3, helps=False))
    own = [request for request in PLAN if machine.holds(request)]
    for number in range(count):
        part = machine.split(number, count)
        taken = take_all(RequestOrder(LISTED, part, WEIGHTS if has_weights else None))
        mine = [request for request in own if part.holds(request)]
        assert set(taken[: len(mine)]) == set(mine)
        assert Counter(taken) == Counter(own)


@pytest.mark.parametrize("weights", [None, WEIGHTS, {digest_of(3): 4.0}])
def test_what_the_cache_holds_is_left_out(weights):
    there = np.zeros(len(PLAN), bool)
    there[::3] = True
    taken = take_all(RequestOrder(LISTED, Stripe(number=1, count=2), weights, there))
    missing = [request for number, request in enumerate(PLAN) if number % 3]
    assert Counter(taken) == Counter(missing)


@pytest.mark.parametrize("name", ["diff_mix", "diff_aug"])
@pytest.mark.parametrize("weights", [None, WEIGHTS, {digest_of(3): 4.0, digest_of(7): 0.3}])
def test_a_plan_is_worked_off_as_the_list_of_its_requests(name, weights):
    plan = Plan([make_part(name)], Images.of(make_sources(60)), 3)
    stripe = Stripe(number=1, count=2)
    as_list = RequestOrder(ListedRequests(list(plan)), stripe, weights)
    assert take_all(RequestOrder(plan, stripe, weights)) == take_all(as_list)


@pytest.mark.parametrize("name", ["diff_mix", "diff_aug"])
def test_classes_get_their_turns_among_the_next_requests_of_a_large_plan(name, monkeypatch):
    monkeypatch.setattr(request_order, "LOOKED_AHEAD", 40)
    monkeypatch.setattr(request_order, "LOOKED_AHEAD_IF_DRAWN", 40)
    monkeypatch.setattr(request_order, "PART", 20)
    plan = Plan([make_part(name)], Images.of(make_sources(60)), 4)
    order = RequestOrder(plan, None, [1e6, 1.0, 1.0, 1.0])
    first = order.take(8)
    assert {request.target_label for request in first} == {0}
    assert {plan.number_of(r.key, r.to_fields()) < 60 for r in first} == {True}
    assert Counter(first + take_all(order)) == Counter(plan)


def test_the_first_requests_of_a_plan_are_found_without_making_the_others():
    made = []

    class Counting(type(make_part("diff_aug").method)):
        def plan(self, source, variant, context, rng):
            made.append(variant)
            return super().plan(source, variant, context, rng)

    part = make_part("diff_aug")
    part = replace(part, method=Counting(part.method.settings))
    plan = Plan([part], Images.of(make_sources(500)), 1000)
    there = np.ones(len(plan), bool)
    there[[300_000, 400_000]] = False
    order = RequestOrder(plan, Stripe(number=0, count=3), None, there)
    assert [request.variant for request in take_all(order)] in ([600, 800], [800, 600])
    assert len(made) == 2


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
