import os
import signal
from dataclasses import replace
from types import SimpleNamespace

import pytest
from cache_samples import FORK

from cache import CacheError, Owner, Rejection, Store, request_key

ELSEWHERE = Owner(host="elsewhere", pid=1, started=1)


@pytest.fixture
def clock(monkeypatch):
    """The clock that claims are judged by, moved by hand."""
    moment = SimpleNamespace(now=1e9)
    monkeypatch.setattr("time.time", lambda: moment.now)
    return moment


def keys(count):
    return [request_key({"number": number}) for number in range(count)]


def test_a_claimed_key_is_refused_to_others(store):
    assert store.claim(keys(2), ELSEWHERE) == keys(2)
    assert store.claim(keys(3), Owner.current()) == keys(3)[2:]
    assert store.status(keys(4)) == ["claimed", "claimed", "claimed", "free"]


def test_an_owner_can_renew_a_claim(store, clock):
    store.claim(keys(1), ELSEWHERE, lease_s=10)
    assert store.claim(keys(1), ELSEWHERE, lease_s=60) == keys(1)
    clock.now += 59
    assert store.status(keys(1)) == ["claimed"]


def test_a_key_named_twice_is_claimed_once(store):
    assert store.claim(keys(1) * 2, ELSEWHERE) == keys(1)


def test_a_released_claim_is_free(store):
    store.claim(keys(2), ELSEWHERE)
    store.release(keys(2)[:1], ELSEWHERE)
    assert store.status(keys(2)) == ["free", "claimed"]


def test_an_owner_cannot_release_the_claims_of_others(store):
    store.claim(keys(1), ELSEWHERE)
    store.release(keys(1), Owner.current())
    assert store.status(keys(1)) == ["claimed"]


def test_a_claim_ends_with_its_lease(store, clock):
    store.claim(keys(1), ELSEWHERE, lease_s=10)
    clock.now += 9
    assert store.claim(keys(1), Owner.current()) == []
    clock.now += 1
    assert store.stats()["claims_dead"] == 1
    assert store.claim(keys(1), Owner.current()) == keys(1)


@pytest.mark.parametrize("lease_s", [0, -1, float("nan")])
def test_a_lease_must_be_positive(store, lease_s):
    with pytest.raises(CacheError, match="lease_s must be positive"):
        store.claim(keys(1), ELSEWHERE, lease_s)


def test_storing_ends_claims_and_a_present_key_cannot_be_claimed(store, make_entries):
    entries = make_entries(2)
    made = [request_key(entry.request) for entry in entries]
    store.claim(made, ELSEWHERE)
    store.put_many(entries)
    assert store.stats()["claims_live"] == 0
    assert store.claim(made, Owner.current()) == []
    assert store.status(made) == ["present", "present"]


def test_the_current_process_is_a_living_owner():
    owner = Owner.current()
    assert owner == Owner.current()
    assert owner.pid == os.getpid()
    assert not owner.is_gone()


def test_a_later_process_with_the_same_number_is_another_owner():
    owner = Owner.current()
    assert replace(owner, started=owner.started - 1).is_gone()


def test_a_process_on_another_host_is_taken_as_living():
    assert not ELSEWHERE.is_gone()


def test_the_claim_of_a_killed_process_is_free_at_once(tmp_path):
    store = Store(tmp_path)
    told, tell = FORK.Pipe(duplex=False)

    def claim_and_wait():
        tell.send(store.claim(keys(1), Owner.current()))
        signal.pause()

    process = FORK.Process(target=claim_and_wait)
    process.start()
    assert told.recv() == keys(1)
    assert store.status(keys(1)) == ["claimed"]
    os.kill(process.pid, signal.SIGKILL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, and not yet buried
    assert store.status(keys(1)) == ["free"]
    assert store.claim(keys(1), Owner.current()) == keys(1)
    process.join()


def test_two_processes_never_get_the_same_key(tmp_path):
    store = Store(tmp_path).open()
    results, start = FORK.Queue(), FORK.Barrier(2)

    def claim_all(order):
        got = []
        start.wait()
        for key in order:
            got += store.claim([key], Owner.current())
        results.put(got)
        start.wait()  # neither may die before the other is done: its claims would be free

    wanted = keys(60)
    processes = [FORK.Process(target=claim_all, args=(o,)) for o in (wanted, wanted[::-1])]
    for process in processes:
        process.start()
    one, other = results.get(timeout=30), results.get(timeout=30)
    for process in processes:
        process.join()
    assert one
    assert other
    assert sorted(one + other) == sorted(wanted)


def test_all_rejections_are_found_with_their_requests(store, make_entries):
    requests = {request_key(entry.request): entry.request for entry in make_entries(3)}
    for key, request in requests.items():
        store.reject(key, request, Rejection("blank"))
    found = store.rejections()
    assert {key: rejection.request for key, rejection in found.items()} == requests
    assert store.rejections([]) == {}
