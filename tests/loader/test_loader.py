"""The loader: counts, resuming, workers, the ledger, and the generation process."""

from collections import Counter
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from mixing_samples import (
    IMAGES,
    KEYS,
    PLAN,
    Setup,
    damage,
    make_order,
    put,
    with_noise,
)
from torch.utils.data._utils.pin_memory import pin_memory

from cache import CacheFullError, Entry, Rejection, Store
from cache.backend import index
from online_aug.errors import UserError
from online_aug.loader.batch import Collated, collate
from online_aug.loader.sampler import StopWaiting, WaitFor
from online_aug.loader.slots import Kind
from online_aug.planning import ListedRequests
from online_aug.producer.messages import Status
from online_aug.request import Counts


class Process:
    """Stands for the supervisor: it notes its calls, which in the real one act on a child."""

    restarts = 0
    status = Status(state="generating")

    def __init__(self, failure=None):
        self.calls = []
        self.failure = failure

    def start(self):
        self.calls.append("start")

    def check(self):
        self.calls.append("check")
        if self.failure:
            raise self.failure

    def served(self, fresh):
        self.calls.append(fresh)

    def publish(self, version):
        self.calls.append(version)

    def stop(self):
        self.calls.append("stop")

    @property
    def counts(self):
        return [call for call in self.calls if isinstance(call, int)]


def content(batches):
    """Return what the training loop sees of batches."""
    return [(b.images.tolist(), b.labels.tolist(), b.served) for b in batches]


def run(loader, epochs):
    batches = []
    for epoch in epochs:
        loader.set_epoch(epoch)
        batches += list(loader)
    return batches


@pytest.fixture
def mixed(store):
    """A run whose cache held something at its start and got more since, in another order."""
    put(store, range(0, len(PLAN), 5))
    setup = Setup(store, transform=with_noise)
    loader = setup.loader()
    put(store, [number for number in reversed(range(30)) if number % 5])
    return setup, loader


def restarted(setup, state):
    """Build everything again and load the state of a checkpoint, as a new process does."""
    loader = setup.loader()
    loader.load_state_dict(state)
    return loader


def test_batches_carry_pixels_and_labels_of_the_configured_size(mixed):
    _, loader = mixed
    for batch in loader:
        assert batch.images.shape == (8, 3, 8, 8)
        torch.testing.assert_close(batch.labels.sum(1), torch.ones(8))


def test_the_loader_s_counts_are_the_sum_over_its_batches(mixed):
    _, loader = mixed
    batches = run(loader, [0, 1])
    assert loader.counts == sum((batch.served for batch in batches), Counts())
    assert sum(vars(loader.counts).values()) == 2 * 2 * IMAGES
    assert loader.counts.fresh == 24
    assert loader.counts.cached > 0


def test_an_old_batch_stays_as_it_was_while_new_ones_arrive(mixed):
    _, loader = mixed
    batches = iter(loader)
    first = next(batches)
    kept = first.images.clone()
    list(batches)
    assert torch.equal(first.images, kept)


@pytest.mark.parametrize("after", [0, 1, 3, 5])
@pytest.mark.parametrize("limit", [None, 2])
def test_a_resumed_run_continues_with_the_batches_that_would_have_followed(store, after, limit):
    put(store, range(0, len(PLAN), 5))
    setup = Setup(store, transform=with_noise, limit=limit)
    loader = setup.loader()
    put(store, [number for number in reversed(range(30)) if number % 5])
    batches = iter(loader)
    list(islice(batches, after))
    state = loader.state_dict()
    expected = content([*batches, *run(loader, [1])])

    again = restarted(setup, state)
    assert content([*again, *run(again, [1])]) == expected
    assert again.counts == loader.counts
    assert again.reused() == loader.reused()


def test_each_rank_resumes_with_its_own_batches(store):
    put(store, range(0, len(PLAN), 5))
    setups = [Setup(store, rank=rank, world_size=2) for rank in range(2)]
    loaders = [setup.loader() for setup in setups]
    put(store, [number for number in reversed(range(30)) if number % 5])
    for setup, loader in zip(setups, loaders, strict=True):
        batches = iter(loader)
        list(islice(batches, 2))
        state = loader.state_dict()
        assert content(restarted(setup, state)) == content(batches)


def test_waiting_resumes_with_the_batches_that_would_have_followed(store):
    put(store, range(len(PLAN)))
    setup = Setup(store, starvation="wait", wait_for=lambda number: True)
    loader = setup.loader()
    run(loader, [0])
    loader.set_epoch(1)
    batches = iter(loader)
    list(islice(batches, 2))
    state = loader.state_dict()
    assert content(restarted(setup, state)) == content(batches)


def test_the_state_at_an_epoch_s_end_leads_to_the_next_one(mixed):
    setup, loader = mixed
    run(loader, [0])
    loader.set_epoch(1)
    state = loader.state_dict()
    assert content(restarted(setup, state)) == content(run(loader, [1]))


def test_the_state_is_made_of_plain_values(mixed, tmp_path):
    _, loader = mixed
    run(loader, [0])
    torch.save(loader.state_dict(), tmp_path / "state.pt")
    assert torch.load(tmp_path / "state.pt", weights_only=True) == loader.state_dict()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker processes")
def test_worker_processes_change_no_batch_and_prefetching_no_state(mixed):
    setup, alone = mixed
    expected = run(alone, [0, 1])
    state_at_start = {"epoch": 0, "step": 0, "times_sampled": {}, "counts": vars(Counts())}
    state_at_start["refusals"] = {}
    now = alone.state_dict()
    start = state_at_start | {name: now[name] for name in ("position_at_start", "position")}

    with setup.loader(workers=2) as loader:
        loader.load_state_dict(start)
        assert content(run(loader, [0, 1])) == content(expected)
    interrupted = setup.loader(workers=2)
    interrupted.load_state_dict(start)
    list(islice(iter(interrupted), 2))  # by now four more are on their way
    resumed = restarted(setup, interrupted.state_dict())
    assert content(run(resumed, [0, 1])) == content(expected[2:])


def test_an_epoch_that_is_iterated_twice_starts_at_its_first_batch(mixed):
    _, loader = mixed
    next(iter(loader))
    list(loader)
    assert loader.step == len(loader)


def test_the_requests_that_were_reused_are_those_made_before_the_run(mixed):
    _, loader = mixed
    run(loader, range(8))
    assert loader.reused() == set(range(0, len(PLAN), 5))


def test_the_ledger_says_how_each_slot_was_filled(store, tmp_path):
    put(store, range(0, len(PLAN), 5))
    setup = Setup(store)
    loader = setup.loader(ledger=tmp_path / "ledger")
    put(store, [1, 2, 3, 4])
    batches = run(loader, [0, 1])
    rows = np.concatenate(
        [np.load(tmp_path / "ledger" / f"epoch{e:04d}-rank0-step0.npy") for e in (0, 1)]
    )
    assert rows["index"].tolist() == [i for e in (0, 1) for i in setup.order.indices(e)]
    counts = Counter(rows["kind"].tolist())
    assert counts[Kind.FRESH] == 4
    told = {kind.name.lower(): counts[kind] for kind in Kind}
    assert Counts(**told) == sum((b.served for b in batches), Counts())
    images = torch.cat([batch.images for batch in batches])
    for row, image in zip(rows, images, strict=True):
        is_synthetic = row["kind"] in (Kind.FRESH, Kind.CACHED)
        expected = [255, row["number"], row["number"]] if is_synthetic else [row["index"]] * 3
        assert image[:, 0, 0].tolist() == expected


def times_served(store):
    with store._environment.transaction() as (txn, tables):
        return {row.key: row.served for _, row in index.walk_log(txn, tables)}


def test_the_cache_is_told_how_often_each_image_was_served(store, tmp_path, monkeypatch):
    monkeypatch.setattr("online_aug.loader.pool._NOTED_AT_ONCE", 5)
    put(store, range(len(PLAN)))
    loader = Setup(store, probability=0.7).loader(ledger=tmp_path)
    run(loader, [0, 1])
    rows = np.concatenate([np.load(path) for path in sorted(tmp_path.glob("*.npy"))])
    counts = Counter(int(number) for number in rows["number"] if number >= 0)
    assert times_served(store) == {key: counts[number] for number, key in enumerate(KEYS)}


def test_a_cache_that_cannot_note_served_images_does_not_end_the_run(store, monkeypatch, caplog):
    def fail(keys):
        raise CacheFullError("cache /c cannot grow: the disk is full")

    put(store, range(len(PLAN)))
    loader = Setup(store, probability=1).loader()
    monkeypatch.setattr(store, "note_served", fail)
    assert len(run(loader, [0])) == len(loader)
    assert "what was served is not noted in the cache: cache /c cannot grow" in caplog.text


def test_the_ledger_and_the_counters_call_an_unreadable_record_starved(store, tmp_path):
    put(store, [9])
    damage(store, KEYS[9])
    loader = Setup(store, probability=1).loader(ledger=tmp_path)
    assert run(loader, [0])[0].served == Counts(starved=8)
    rows = np.load(tmp_path / "epoch0000-rank0-step0.npy")
    assert set(rows["kind"].tolist()) == {Kind.STARVED}
    assert set(rows["number"].tolist()) == {-1}


def test_the_ledger_of_an_interrupted_epoch_is_written_in_two_parts(mixed, tmp_path):
    setup, _ = mixed
    loader = setup.loader(ledger=tmp_path)
    batches = iter(loader)
    list(islice(batches, 2))
    state = loader.state_dict()
    batches.close()  # what leaving the loop does
    resumed = setup.loader(ledger=tmp_path)
    resumed.load_state_dict(state)
    list(resumed)
    parts = [np.load(tmp_path / f"epoch0000-rank0-step{step}.npy") for step in (0, 2)]
    assert [len(part) for part in parts] == [16, 32]
    indices = np.concatenate(parts)["index"].tolist()
    assert indices == setup.order.indices(0).tolist()


def test_the_process_starts_with_the_first_iteration_and_once(mixed):
    setup, _ = mixed
    process = Process()
    loader = setup.loader(process=process)
    assert process.calls == []
    run(loader, [0, 1])
    assert process.calls[0] == "start"
    assert process.calls.count("start") == 1
    assert process.calls.count("check") == 12


def test_the_process_ends_with_the_block_also_when_training_fails_and_once(mixed):
    setup, _ = mixed
    process = Process()
    loader = setup.loader(process=process)

    def train():
        with loader:
            next(iter(loader))
            raise ZeroDivisionError

    pytest.raises(ZeroDivisionError, train)
    loader.close()
    assert process.calls.count("stop") == 1


def test_a_process_that_was_never_started_is_not_stopped(mixed):
    setup, _ = mixed
    process = Process()
    setup.loader(process=process).close()
    assert process.calls == []


def test_the_failure_of_the_process_reaches_the_training_loop(mixed):
    setup, _ = mixed
    loader = setup.loader(process=Process(UserError("generation process: no room")))
    with pytest.raises(UserError, match="^generation process: no room$"):
        next(iter(loader))


@pytest.mark.parametrize("world_size", [1, 2])
def test_the_process_is_told_how_many_images_all_ranks_served(store, world_size):
    setup = Setup(store, world_size=world_size)
    process = Process()
    loader = setup.loader(process=process)
    put(store, range(24))
    run(loader, [0, 1, 2])
    assert process.counts == sorted(process.counts)
    assert process.counts[-1] == 24


def test_after_a_restart_only_images_served_since_are_reported(mixed):
    setup, loader = mixed
    batches = iter(loader)
    list(islice(batches, 2))
    before = loader.counts.fresh
    process = Process()
    again = setup.loader(process=process)
    again.load_state_dict(loader.state_dict())
    run(again, [0, 1])
    assert before > 0
    assert process.counts[-1] == again.counts.fresh - before


def test_pinning_pins_the_tensors_of_a_batch(mixed, monkeypatch):
    # Page-locking itself needs a GPU; checked is that PyTorch's walk over a batch finds them.
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: pinned.append(self) or self)
    setup, _ = mixed
    dataset = setup.dataset()
    slots = next(iter(setup.sampler()))
    collated = collate([dataset[slot] for slot in slots])
    same = pin_memory(collated)
    assert isinstance(same, Collated)
    expected = [same.images.shape, same.labels.places.shape, same.labels.shares.shape]
    assert [tensor.shape for tensor in pinned] == expected
    assert torch.equal(same.labels.tensor().to_dense(), collated.labels.tensor().to_dense())


def test_waiting_ends_when_the_image_is_there(store):
    process = Process()

    def make(*_):
        process.calls.append("check")
        put(store, [3])

    process.check = make
    assert WaitFor(store, PLAN, process)(3) is True
    assert process.calls == ["check"]


def test_waiting_ends_when_the_image_was_rejected(store):
    store.reject(KEYS[3], PLAN[3].to_fields(), Rejection("blank"))
    assert WaitFor(store, PLAN, None)(3) is False


def test_waiting_in_vain_is_one_clear_error(store):
    with pytest.raises(UserError, match="has waited 0 s for image 3 of the plan") as caught:
        WaitFor(store, PLAN, None, timeout_s=0.1)(3)
    assert "\n" not in str(caught.value)


def test_waiting_for_a_process_that_failed_ends_with_its_reason(store):
    process = Process(UserError("generation process: no room"))
    with pytest.raises(UserError, match="no room"):
        WaitFor(store, PLAN, process)(3)


def test_waiting_for_an_image_that_a_full_cache_did_not_take_ends_at_once(store):
    process = Process()
    process.status = Status(state="full", note="the disk is full; free space")
    put(store, [2])
    assert WaitFor(store, PLAN, process)(2) is True
    with pytest.raises(UserError) as caught:
        WaitFor(store, PLAN, process)(3)
    assert str(caught.value) == (
        "mixing.starvation: wait needs image 3 of the plan, which is not made: the disk is full; "
        "free space; the same command then goes on"
    )


def test_an_epoch_has_as_many_batches_as_the_loader_says(store):
    loader = Setup(store, order=make_order(num_images=21)).loader()
    assert len(list(loader)) == len(loader) == 42 // 8


def test_waiting_ends_when_the_run_is_to_stop(store):
    with pytest.raises(StopWaiting):
        WaitFor(store, PLAN, None, is_stopping=lambda: True)(3)


NEWER = [replace(request, saliency_version="b") for request in PLAN]


def numbers_in(batches):
    """Requests that were served, told by their pixels: number n is (255, n, n)."""
    images = torch.cat([batch.images for batch in batches])
    return set(images[images[:, 0, 0, 0] == 255, 1, 0, 0].tolist())


def test_a_newer_plan_is_served_beside_those_within_the_lag_and_older_ones_no_more(store):
    versions = [[replace(r, saliency_version=v) for r in PLAN[:4]] for v in "abc"]
    for start, plan in zip((100, 120, 140), versions, strict=True):
        for n, request in enumerate(plan):
            _put_as(store, request, start + n)
    with Setup(store, probability=1.0).loader() as loader:
        for epoch, (plan, version) in enumerate(zip(versions, "abc", strict=True)):
            loader.extend(ListedRequests(plan), version=version, epoch=epoch, lag=1)
            loader.set_epoch(epoch)
            served = numbers_in(loader)
            newest = {100 + 20 * epoch + n for n in range(4)}
            before = {80 + 20 * epoch + n for n in range(4)} if epoch else set()
            assert served <= newest | before
            assert served & newest
            assert served & before or epoch == 0


@pytest.mark.parametrize("workers", [0, 1])
def test_worker_processes_know_the_newer_plan(store, workers):
    with Setup(store, probability=1.0).loader(workers=workers) as loader:
        assert all(batch.served.cached == 0 for batch in loader)
        for request in NEWER[:4]:
            _put_as(store, request, 200)
        loader.extend(ListedRequests(NEWER[:4]), version="b", epoch=1, lag=0)
        loader.set_epoch(1)
        assert numbers_in(loader) == {200}


def test_the_process_is_told_of_newer_maps(store):
    process = Process()
    with Setup(store).loader(process=process) as loader:
        loader.extend(ListedRequests(NEWER), version="b", epoch=1, lag=0)
    assert process.calls == ["b"]


def test_a_loader_resumes_in_a_newer_plan_like_an_uninterrupted_one(store):
    for n, request in enumerate(NEWER[:6]):
        _put_as(store, request, 200 + n)

    def extended():
        loader = Setup(store, probability=0.5, limit=3).loader()
        loader.extend(ListedRequests(NEWER[:6]), version="b", epoch=0, lag=0)
        return loader

    with extended() as whole:
        expected = content(whole)
    with extended() as first:
        begun = content(islice(first, 2))
        state = first.state_dict()
    with extended() as second:
        second.load_state_dict(state)
        assert begun + content(second) == expected


def test_with_wait_the_turn_decides_which_request_of_the_newest_plan_is_served(store):
    for n, request in enumerate(NEWER):
        _put_as(store, request, 100 + n)
    setup = Setup(store, probability=1.0, starvation="wait", wait_for=lambda number: True)
    with setup.loader() as loader:
        loader.extend(ListedRequests(NEWER), version="b", epoch=3, lag=0)
        loader.set_epoch(3)
        images = torch.cat([batch.images for batch in loader])
    assert images[:, 1, 0, 0].tolist() == [100 + n for n in range(len(PLAN))]


def _put_as(store, request, grey):
    image = np.full((8, 8, 3), (255, grey, grey), np.uint8)
    store.put_many([Entry(request.to_fields(), image)])


def test_a_run_does_not_resume_with_an_emptied_cache(mixed, tmp_path):
    setup, loader = mixed
    next(iter(loader))
    with Store(tmp_path / "emptied") as emptied:
        resumed = replace(setup, store=emptied).loader()
        with pytest.raises(UserError, match=r"cache that this run was served from, of wh"):
            resumed.load_state_dict(loader.state_dict())
