"""What one process takes from a plan, over a real cache."""

from dataclasses import replace

import pytest
import torch
from request_samples import make_plan, make_sources

from cache import Entry, Owner
from online_aug.producer import request_queue
from online_aug.producer.request_queue import RequestQueue, Stripe

PLAN = make_plan(make_sources(24), 2)
ME = Owner.current()
OTHER = replace(ME, pid=1, started=0)


def keys(requests):
    return [request.key for request in requests]


def store_all(store, requests):
    image = torch.zeros(8, 8, 3, dtype=torch.uint8).numpy()
    store.put_many([Entry(request.to_fields(), image) for request in requests])


def take_all(items):
    taken = []
    while some := items.take(5):
        taken += some
    return taken


@pytest.fixture
def items(store):
    return RequestQueue(PLAN, store, ME)


def test_all_is_given_out_in_the_order_of_the_plan(items):
    assert take_all(items) == PLAN


def test_what_is_given_out_is_claimed(store, items):
    taken = items.take(3)
    assert store.claim(keys(taken), OTHER) == []


def test_no_more_is_claimed_than_a_few_images_ahead(store, items):
    items.take(1)
    assert len(store.claim(keys(PLAN), OTHER)) == len(PLAN) - request_queue.CLAIM_BATCH


def test_what_is_stored_or_rejected_is_skipped_and_only_the_stored_counts_as_reused(store, items):
    store_all(store, PLAN[:7])
    store.reject(PLAN[7].key, PLAN[7].to_fields(), "flat")
    assert take_all(items) == PLAN[8:]
    assert items.reused == 7


def test_what_was_made_by_another_after_it_was_looked_up_counts_as_reused(store, items):
    first = items.take(1)
    store_all(store, PLAN[-4:])
    assert take_all(items) == PLAN[1:-4]
    for request in first + PLAN[1:-4]:
        items.end(request)
    items.look_again()
    assert items.take(1) == []
    assert (items.reused, items.is_done) == (4, True)


def test_what_others_have_claimed_is_given_out_when_they_give_it_up(store, items):
    theirs = PLAN[3:9]
    store.claim(keys(theirs), OTHER)
    assert take_all(items) == PLAN[:3] + PLAN[9:]
    assert not items.is_done
    store.release(keys(theirs), OTHER)
    items.look_again()
    assert take_all(items) == theirs


def test_it_is_done_when_the_end_of_all_was_told(items):
    for request in take_all(items):
        assert not items.is_done
        items.end(request)
    assert items.is_done


def test_what_is_given_back_is_free_for_others_and_comes_next_if_they_leave_it(store, items):
    begun = items.take(2)
    items.give_back()
    assert len(store.claim(keys(PLAN), OTHER)) == len(PLAN) - len(begun)
    store.release(keys(PLAN), OTHER)
    assert take_all(items) == PLAN[2:]


def test_a_release_ends_all_claims(store, items):
    items.take(2)
    items.release()
    assert store.stats()["claims_live"] == 0


def test_leases_are_renewed_before_they_end(store, items, monkeypatch):
    now = 1000.0
    monkeypatch.setattr(request_queue.time, "monotonic", lambda: now)
    items = RequestQueue(PLAN, store, ME)
    items.take(2)
    asked = []
    claim = store.claim
    monkeypatch.setattr(store, "claim", lambda *args: asked.extend(args[0]) or claim(*args))
    now += request_queue.LEASE_S / 2 + 1
    items.take(2)
    assert set(asked) == set(keys(PLAN[: request_queue.CLAIM_BATCH]))


def test_a_claim_that_is_anothers_by_now_is_not_given_out(store, items, monkeypatch):
    monkeypatch.setattr(request_queue, "LEASE_S", 1e-6)
    items.take(2)
    theirs = store.claim(keys(PLAN[5:9]), OTHER)
    taken = take_all(items)
    assert theirs
    assert not set(theirs) & set(keys(taken))


def test_other_weights_change_the_order_of_all_that_is_not_claimed(store):
    items = RequestQueue(PLAN, store, ME, weights=[1e6, 1.0, 1.0, 1.0])
    first = items.take(2)
    items.reweigh([1.0, 1.0, 1.0, 1e6])
    rest = take_all(items)
    assert {request.target_label for request in first} == {0}
    claimed = rest[: request_queue.CLAIM_BATCH - len(first)]
    hard = [r for r in PLAN if r.target_label == 3 and r not in claimed]
    assert rest[len(claimed) : len(claimed) + len(hard)] == hard
    assert set(first + rest) == set(PLAN)


def test_processes_with_parts_of_their_own_meet_only_at_the_end(store):
    mine, theirs = (
        RequestQueue(PLAN, store, owner, Stripe(number=number, count=2))
        for number, owner in enumerate((ME, OTHER))
    )
    own = [request for request in PLAN if Stripe(number=0, count=2).holds(request)]
    taken = [request for _ in own for request in mine.take(1)]
    assert taken == own
    assert not set(take_all(theirs)) & set(own)
