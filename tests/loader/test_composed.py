"""Samples that the loader composes without a generator, alone and beside generated ones."""

import logging
from itertools import islice

import numpy as np
import pytest
import torch
from mixing_samples import (
    IMAGES,
    PLAN,
    GreyImages,
    Setup,
    compose_alone,
    epochs,
    make_order,
    put,
    with_noise,
)

from online_aug.data.images import BadImageError
from online_aug.loader.back_pressure import BackPressure
from online_aug.loader.dataset import UNREADABLE
from online_aug.loader.loader import OnlineAugLoader
from online_aug.loader.sampler import BatchSampler, Replay
from online_aug.loader.slots import LEDGER_FOLDER, Kind

REFUSED = IMAGES // 6


def make_setup(store, **changes):
    settings = {"composed_share": 1.0, "policy": "local", "transform": with_noise}
    return Setup(store, **settings | changes)


def serve(loader, count=2):
    found = []
    for epoch in range(count):
        loader.set_epoch(epoch)
        found += list(loader)
    return found


def content(batches):
    return [(b.images.tolist(), b.labels.tolist(), b.served) for b in batches]


def plain(store, **changes):
    return make_setup(store, transform=lambda image, rng: image, probability=1.0, **changes)


def test_every_slot_gets_a_new_sample_of_its_own_image(store):
    images = torch.cat([batch.images for batch in serve(plain(store).loader())])
    composed = images[images[:, 2, 0, 0] == 77]
    index, chance = composed[:, 0, 0, 0].tolist(), composed[:, 1, 0, 0].tolist()
    assert sorted(index) == sorted(4 * [n for n in range(IMAGES) if n % 6])
    assert all(len({c for i, c in zip(index, chance, strict=True) if i == n}) > 1 for n in {*index})


def test_a_refused_image_is_served_as_it_is_and_counted_with_its_reason(store):
    loader = plain(store).loader()
    images = torch.cat([batch.images for batch in serve(loader)])
    real = images[images[:, 2, 0, 0] != 77]
    assert sorted(real[:, 2, 0, 0].tolist()) == sorted(4 * [0, 6, 12, 18])
    assert (loader.counts.starved, loader.counts.composed) == (4 * REFUSED, 4 * (IMAGES - REFUSED))
    assert loader.refusals == {"every sixth": 4 * REFUSED}


def test_nothing_is_asked_of_the_cache_and_nothing_put_into_it(store):
    loader = make_setup(store).loader()
    serve(loader)
    assert (store.position(), loader.state_dict()["times_sampled"]) == (0, {})
    assert loader.counts.fresh == loader.counts.cached == 0


@pytest.mark.parametrize("policy", ["global", "local", "concat"])
def test_every_policy_composes_as_many_as_the_probability_says(store, policy):
    order = make_order(repeats=40)
    setup = make_setup(store, policy=policy, probability=0.25, order=order)
    kinds = [slot.kind for batch in setup.sampler() for slot in batch]
    assert set(kinds) == {Kind.REAL, Kind.COMPOSED}
    assert kinds.count(Kind.COMPOSED) / len(kinds) == pytest.approx(0.25, abs=0.04)


def test_workers_and_ranks_change_nothing(store):
    whole = serve(make_setup(store).loader())
    assert content(serve(make_setup(store).loader(workers=2))) == content(whole)
    halves = [serve(make_setup(store, rank=rank, world_size=2).loader()) for rank in range(2)]
    for batch, *parts in zip(whole, *halves, strict=True):
        torch.testing.assert_close(batch.images, torch.cat([part.images for part in parts]))
        assert batch.served == parts[0].served + parts[1].served


def test_a_run_resumed_in_the_middle_of_an_epoch_goes_on_as_if_nothing_had_been(store):
    setup = make_setup(store)
    uninterrupted = serve(setup.loader(), 1)
    first = setup.loader()
    began = list(islice(first, 2))
    second = setup.loader()
    second.load_state_dict(first.state_dict())
    assert content([*began, *second]) == content(uninterrupted)
    assert second.counts.slots == 2 * IMAGES
    assert second.refusals["every sixth"] == second.counts.starved > 0


def test_a_replay_serves_the_same_images(store, tmp_path):
    put(store, range(len(PLAN)))
    setup = make_setup(store, composed_share=0.5)
    found = serve(setup.loader(ledger=tmp_path / LEDGER_FOLDER))
    pool, order = setup.sampler().pool, setup.chosen_order
    again = OnlineAugLoader(
        setup.dataset(),
        BatchSampler(order, pool, Replay(order, pool, tmp_path)),
        workers=0,
        pin_memory=False,
        pressure=BackPressure(pool),
        ledger=None,
    )
    assert content(serve(again)) == content(found)
    assert sum(batch.served.composed for batch in found) > 0
    assert sum(batch.served.cached for batch in found) > 0


def test_beside_a_generator_each_has_its_share_by_weight(store):
    put(store, range(len(PLAN)))
    order = make_order(repeats=60)
    setup = make_setup(store, policy="global", composed_share=0.25, order=order)
    kinds = [slot.kind for batch in epochs(setup.sampler(), 1) for slot in batch]
    composed, generated = kinds.count(Kind.COMPOSED), kinds.count(Kind.CACHED)
    assert kinds.count(Kind.REAL) / len(kinds) == pytest.approx(0.5, abs=0.05)
    assert composed / (composed + generated) == pytest.approx(0.25, abs=0.05)


def test_waiting_goes_through_the_whole_plan_whatever_is_composed_between(store):
    put(store, range(len(PLAN)))
    waited = []
    setup = make_setup(
        store,
        policy="global",
        starvation="wait",
        composed_share=0.5,
        order=make_order(repeats=4),
        wait_for=lambda number: waited.append(number) or True,
    )
    slots = [slot for batch in epochs(setup.sampler(), 2) for slot in batch]
    numbers = [slot.number for slot in slots if slot.number >= 0]
    assert numbers == waited == [n % len(PLAN) for n in range(len(waited))]
    assert len(waited) > len(PLAN)


class Lost(GreyImages):
    """A set whose last image cannot be read any more."""

    def load(self, index):
        if index == self.count - 1:
            raise BadImageError("the last image is lost")
        return super().load(index)


def with_the_lost(index, rng):
    """Compose every image with the last one."""
    Lost().load(IMAGES - 1)
    return compose_alone(index, rng)


@pytest.mark.parametrize("skips", [True, False])
def test_a_background_that_cannot_be_read_is_an_error_unless_such_images_are_skipped(
    store, skips, monkeypatch, caplog
):
    monkeypatch.setattr("mixing_samples.compose_alone", with_the_lost)
    loader = plain(store, skips_bad_images=skips).loader()
    if not skips:
        with pytest.raises(BadImageError, match="the last image is lost"):
            serve(loader)
        return
    with caplog.at_level(logging.WARNING):
        serve(loader, 1)
    assert loader.refusals == {UNREADABLE: 2 * IMAGES}
    assert "skipped: the last image is lost" in caplog.text
    assert np.sum(loader.counts.starved) == 2 * IMAGES
