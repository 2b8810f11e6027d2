"""The queue that claims requests in a real cache."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from request_samples import CLASSES, make_plan, make_sources

from cache import Entry, Owner, Rejection
from online_aug.planning import ListedRequests
from online_aug.producer import request_queue
from online_aug.producer.request_order import Stripe
from online_aug.producer.request_queue import RequestQueue

ME = Owner.current()
OTHER = replace(ME, pid=1, started=0)


def take_all(order, count=7):
    taken = []
    while some := order.take(count):
        taken += some
    return taken


SMALL = make_plan(make_sources(24), 2)


def keys(requests):
    return [request.key for request in requests]


def store_all(store, requests):
    image = torch.zeros(8, 8, 3, dtype=torch.uint8).numpy()
    store.put_many([Entry(request.to_fields(), image) for request in requests])


@pytest.fixture
def queue(store):
    return RequestQueue(ListedRequests(SMALL), store, ME)


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


def test_what_is_known_to_be_there_is_not_looked_up_and_counts_as_reused(store):
    there = np.arange(len(SMALL)) < 7
    queue = RequestQueue(ListedRequests(SMALL), store, ME, there=there)
    assert take_all(queue, 5) == SMALL[7:]
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
    queue = RequestQueue(ListedRequests(SMALL), store, ME)
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
    queue = RequestQueue(ListedRequests(SMALL), store, ME, weights=[1e6, 1.0, 1.0, 1.0])
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
        RequestQueue(ListedRequests(SMALL), store, owner, Stripe(number=number, count=2))
        for number, owner in enumerate((ME, OTHER))
    )
    own = [request for request in SMALL if Stripe(number=0, count=2).holds(request)]
    taken = [request for _ in own for request in mine.take(1)]
    assert taken == own
    assert not set(take_all(theirs, 5)) & set(own)


def test_another_plan_ends_the_claims_on_the_first_and_keeps_count_of_reuse(store, queue):
    store_all(store, SMALL[:3])
    queue.take(2)
    queue.replace_plan(ListedRequests(SMALL[20:]))
    assert store.stats()["claims_live"] == 0
    assert take_all(queue, 5) == SMALL[20:]
    assert queue.reused == 3


def test_losses_change_the_order_of_this_plan_and_the_next(store):
    queue = RequestQueue(ListedRequests([]), store, ME, weights=[1.0] * CLASSES)
    queue.follow_losses([0.0, 0.0, 0.0, 9.0])
    queue.replace_plan(ListedRequests(SMALL))
    hard = [request for request in SMALL if request.target_label == 3]
    assert queue.take(len(hard)) == hard
