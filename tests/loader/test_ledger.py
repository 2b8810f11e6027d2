"""The ledger read back, and an earlier run's sequence served again from it."""

from itertools import islice

import numpy as np
import pytest
import torch
from mixing_samples import IMAGES, PLAN, GreyImages, Setup, damage, make_order, put, with_noise

from online_aug.errors import UserError
from online_aug.loader.back_pressure import BackPressure
from online_aug.loader.loader import OnlineAugLoader
from online_aug.loader.sampler import BatchSampler, Replay
from online_aug.loader.slots import LEDGER_FOLDER, Ledger

EPOCHS = 3


def make_setup(store, **changes):
    return Setup(store, transform=with_noise, probability=0.6, **changes)


def serve(loader, epochs=EPOCHS):
    found = []
    for epoch in range(epochs):
        loader.set_epoch(epoch)
        found += list(loader)
    return found


def replayed(setup, run):
    return Replay(setup.order, setup.sampler().pool, run)


def replay(setup, run):
    pool = setup.sampler().pool
    return OnlineAugLoader(
        setup.dataset(),
        BatchSampler(setup.order, pool, Replay(setup.order, pool, run)),
        workers=0,
        pin_memory=False,
        pressure=BackPressure(pool),
        ledger=None,
    )


def assert_equal(first, second):
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)
        assert one.served == other.served


@pytest.fixture
def recorded(store, tmp_path):
    """A run whose cache grew while it was served: its batches, and its directory."""
    loader = make_setup(store).loader(ledger=tmp_path / LEDGER_FOLDER)
    found = []
    for epoch in range(EPOCHS):
        loader.set_epoch(epoch)
        for batch in loader:
            found.append(batch)
            put(store, [len(found)])
    return found, tmp_path


def test_the_same_sequence_is_served_again_from_a_cache_that_has_grown(store, recorded):
    found, run = recorded
    put(store, range(30, 34))
    assert_equal(found, serve(replay(make_setup(store), run)))


def test_a_replay_counts_fresh_cached_and_starved_slots_like_the_run(store, recorded):
    found, run = recorded
    again = serve(replay(make_setup(store), run))
    kinds = [vars(batch.served) for batch in again]
    assert kinds == [vars(batch.served) for batch in found]
    assert all(sum(served[kind] for served in kinds) for kind in ("fresh", "cached", "starved"))


def test_a_run_of_two_ranks_is_replayed_on_one(store, tmp_path):
    put(store, range(len(PLAN)))
    ranks = [
        serve(make_setup(store, rank=rank, world_size=2).loader(ledger=tmp_path / LEDGER_FOLDER))
        for rank in (0, 1)
    ]
    whole = serve(replay(make_setup(store), tmp_path))
    for number, batch in enumerate(whole):
        both = torch.cat([batches[number].images for batches in ranks])
        assert torch.equal(batch.images, both)


def test_a_killed_and_resumed_run_is_replayed_as_it_ended(store, tmp_path):
    put(store, range(len(PLAN)))
    setup, folder = make_setup(store), tmp_path / LEDGER_FOLDER
    first = setup.loader(ledger=folder)
    batches = iter(first)
    seen = list(islice(batches, 2))
    state = first.state_dict()
    first.save_ledger()  # a checkpoint; what follows was lost to a kill -9
    resumed = setup.loader(ledger=folder)
    resumed.load_state_dict(state)
    seen += list(resumed)
    assert_equal(seen, serve(replay(setup, tmp_path), epochs=1))


def test_a_resumed_epoch_replaces_what_a_killed_launch_wrote(store, tmp_path):
    put(store, range(len(PLAN)))
    folder = tmp_path / LEDGER_FOLDER
    serve(make_setup(store).loader(ledger=folder), epochs=2)
    loader = make_setup(store).loader(ledger=folder)
    loader.load_state_dict(loader.state_dict() | {"step": 1})
    next(iter(loader))
    loader.save_ledger()
    names = sorted(path.name for path in folder.glob("*.npy"))
    assert names == ["epoch0000-rank0-step0.npy", "epoch0000-rank0-step1.npy"]


def test_a_ledger_that_lacks_steps_is_one_line(store, recorded):
    _, run = recorded
    with pytest.raises(UserError, match=r"run.replay must hold .* 0 of the 6 steps of epoch 4"):
        replayed(make_setup(store), run).check(EPOCHS + 1)


def test_a_damaged_part_is_one_line(store, recorded):
    _, run = recorded
    next((run / LEDGER_FOLDER).glob("*.npy")).write_bytes(b"no array")
    with pytest.raises(UserError, match=r"npy must be a part of a ledger"):
        replayed(make_setup(store), run).check(EPOCHS)


def test_an_array_of_something_else_is_one_line(tmp_path):
    np.save(tmp_path / "epoch0000-rank0-step0.npy", np.zeros(3))
    with pytest.raises(UserError, match="must be a part of a ledger, got an array of float64"):
        Ledger(tmp_path, batch_size=1, steps=3).epoch(0)


def test_a_cache_without_the_images_is_one_line(tmp_path, store, recorded):
    from cache import Store

    _, run = recorded
    with Store(tmp_path / "empty") as empty:
        setup = make_setup(empty)
        with pytest.raises(
            UserError, match=r"every image that run.replay was served, \d+ of \d+ a"
        ):
            replayed(setup, run).check(EPOCHS)


def test_an_image_that_is_lost_later_ends_the_replay(store, recorded):
    from mixing_samples import KEYS

    _, run = recorded
    loader = replay(make_setup(store), run)
    order = make_order()
    ledger = Ledger(run / LEDGER_FOLDER, batch_size=order.batch_size, steps=order.steps)
    rows = ledger.epoch(0)
    damage(store, KEYS[int(rows["number"][rows["number"] >= 0][0])])
    with pytest.raises(UserError, match="must find every image it serves in the cache"):
        serve(loader)


def test_requests_beyond_the_plan_are_one_line(store, tmp_path):
    put(store, range(len(PLAN)))
    setup, folder = make_setup(store), tmp_path / LEDGER_FOLDER
    serve(setup.loader(ledger=folder), epochs=1)
    path = folder / "epoch0000-rank0-step0.npy"
    rows = np.load(path)
    rows["number"][0] = len(PLAN)
    np.save(path, rows)
    with pytest.raises(UserError, match="must have been served images of this plan"):
        serve(replay(setup, tmp_path))


def test_the_ledger_takes_nine_bytes_a_slot(store, tmp_path):
    put(store, range(len(PLAN)))
    setup = make_setup(store, order=make_order(repeats=40), images=GreyImages(IMAGES))
    serve(setup.loader(ledger=tmp_path), epochs=1)
    header = 256
    slots = setup.order.steps * setup.order.batch_size
    assert sum(path.stat().st_size for path in tmp_path.glob("*.npy")) <= 9 * slots + header
