"""A loader put together, alone and on several nodes, and the whole with a generation process."""

import os

import numpy as np
import psutil
import pytest
import torch
from experiment_samples import make_config, make_experiment
from request_samples import make_plan, make_sources

from cache import Entry, Oldest, Owner, ServedFirst, Store
from online_aug.config.loading import load_config, resolved_yaml
from online_aug.distributed import world
from online_aug.distributed.devices import plan_devices
from online_aug.distributed.world import World
from online_aug.errors import UserError
from online_aug.loader.pool import open_store
from online_aug.loader.slots import order_of
from online_aug.producer.request_order import Stripe
from online_aug.request import Counts
from online_aug.training import build_loader as assembly
from online_aug.training import generators
from online_aug.training.build_loader import (
    build_loader,
    check_foregrounds,
    check_same_plan,
    check_served,
    needed_of,
)
from online_aug.training.checkpoints import checkpoint_path, own_state_path

WORLD = World(0, 1, 0, torch.device("cpu"))


@pytest.fixture
def experiment_of(tmp_path, tiny_model):
    def make(**sections):
        experiment = make_experiment(
            tmp_path, tiny_model, **{"finetune": {"enabled": False}} | sections
        )
        return experiment, plan_devices(experiment.config.devices, cores=2)

    return make


@pytest.fixture
def run_directory(tmp_path):
    def make(experiment, name="run"):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(resolved_yaml(experiment.config))
        return folder

    return make


def serve_epochs(loader, count):
    for epoch in range(count):
        loader.set_epoch(epoch)
        for batch in loader:
            assert batch.images.shape == (4, 3, 16, 16)
            torch.testing.assert_close(batch.labels.sum(1), torch.ones(4))
    return loader.counts


def children():
    """Generation processes of ours; earlier tests may have left helpers of multiprocessing."""
    return [
        child
        for child in psutil.Process(os.getpid()).children(recursive=True)
        if "online_aug.producer" in child.cmdline()
    ]


@pytest.mark.slow
def test_a_second_run_serves_the_images_of_the_first(experiment_of, run_directory):
    mixing = {"synthetic_probability": 0.6, "starvation": "wait"}
    first, devices = experiment_of(mixing=mixing)
    with build_loader(first, devices, WORLD, run_directory(first, "first")) as loader:
        totals = serve_epochs(loader, 4)
        assert totals.fresh > 0
        assert totals.starved == 0
        assert loader.reused() == set()
        assert loader.process.status.generated >= totals.fresh
        (child,) = children()
    assert not child.is_running()
    assert (loader.process.status.state, loader.process.restarts) == ("finished", 0)

    with open_store(first.config, first.splits.train) as store:
        before = store.position()
        assert before == len(first.plan)
    second, _ = experiment_of(mixing=mixing, run={"dir": "unused", "seed": 1})
    with build_loader(second, devices, WORLD, run_directory(second, "second")) as loader:
        totals = serve_epochs(loader, 2)
        assert (totals.fresh, totals.starved) == (0, 0)
        assert totals.cached > 0
        assert len(loader.reused()) > 0
    assert children() == []
    with open_store(second.config, second.splits.train) as store:
        assert store.position() == before


@pytest.mark.slow
def test_a_generation_process_that_cannot_work_ends_the_run_with_its_reason(
    experiment_of, run_directory
):
    experiment, devices = experiment_of(mixing={"starvation": "wait", "synthetic_probability": 1})
    folder = run_directory(experiment)
    (folder / "config.yaml").write_text("generation: {slots: none}")
    with build_loader(experiment, devices, WORLD, folder) as loader:
        with pytest.raises(UserError, match="^generation process: .*generation.slots") as caught:
            serve_epochs(loader, 1)
        assert "\n" not in str(caught.value)
    assert children() == []


def test_what_was_made_while_the_loader_was_built_was_made_in_this_run(experiment_of, tmp_path):
    experiment, devices = experiment_of(devices={"train": "cpu", "generate": "none"})
    with open_store(experiment.config, experiment.splits.train) as store:
        before = store.position()
        pixels = np.zeros((64, 64, 3), np.uint8)
        store.put_many([Entry(experiment.plan[0].to_fields(), pixels, {})])
    generation = generators.Generation(None, before)
    with build_loader(experiment, devices, WORLD, tmp_path, None, generation) as loader:
        serve_epochs(loader, 4)
        assert (loader.counts.fresh, loader.reused()) == (1, set())


@pytest.mark.parametrize(
    ("sections", "rank"),
    [
        ({"mixing": {"synthetic_probability": 0}}, 0),
        ({"devices": {"train": "cpu", "generate": "none"}}, 0),
        ({}, 1),
    ],
)
def test_no_process_is_started_if_nothing_is_generated_or_another_rank_owns_it(
    experiment_of, tmp_path, sections, rank, monkeypatch
):
    monkeypatch.setattr(assembly, "is_same_everywhere", lambda world, keys: True)  # no other rank
    experiment, devices = experiment_of(**sections)
    world = World(rank, 2, rank, torch.device("cpu"))
    with build_loader(experiment, devices, world, tmp_path) as loader:
        assert loader.process is None
        assert serve_epochs_of_two(loader) > 0


def serve_epochs_of_two(loader):
    served = sum((batch.served for batch in loader), Counts())
    return served.real


def test_the_order_is_the_one_the_configuration_describes(experiment_of):
    experiment, _ = experiment_of(
        data={"epoch_repeats": 3} | experiment_of()[0].config.data.model_dump()
    )
    order = order_of(experiment.config, experiment.splits.train)
    assert (order.num_images, order.batch_size, order.seed) == (8, 4, 0)


@pytest.mark.nightly
@pytest.mark.slow
def test_two_generation_processes_of_one_run_make_its_plan_once(experiment_of, run_directory):
    experiment, devices = experiment_of(
        mixing={"synthetic_probability": 0.6, "starvation": "wait"},
        devices={"train": "cpu", "generate": ["cpu", "cpu"]},
    )
    with build_loader(experiment, devices, WORLD, run_directory(experiment)) as loader:
        totals = serve_epochs(loader, 4)
        running = children()
        assert len(running) == 2
    assert not any(child.is_running() for child in running)
    assert totals.starved == 0
    assert loader.process.status.generated == len(experiment.plan)
    with open_store(experiment.config, experiment.splits.train) as store:
        assert store.position() == len(experiment.plan)


def test_the_cache_is_opened_as_configured(experiment_of):
    experiment, _ = experiment_of(cache={"path": "/nowhere/cache", "codec": "raw", "max_gib": 2})
    store = open_store(experiment.config, experiment.splits.train)
    assert isinstance(store, Store)
    assert (store.codec, store.max_gib, store.durability) == ("raw", 2, "power")


@pytest.mark.parametrize(
    ("eviction", "limit", "policy"),
    [
        ("served", None, ServedFirst(1)),
        ("served", 3, ServedFirst(3)),
        ("oldest", None, Oldest()),
        (None, None, None),
    ],
)
def test_the_cache_evicts_as_configured(experiment_of, eviction, limit, policy):
    experiment, _ = experiment_of(
        cache={"path": "/nowhere/cache", "eviction": eviction},
        mixing={"max_times_sampled": limit},
    )
    assert open_store(experiment.config, experiment.splits.train).policy == policy


PLAN = make_plan(make_sources(60), 2)


def world_of(rank, local_ranks=(0, 1, 0, 1)):
    here = torch.device("cpu")
    return World(rank, len(local_ranks), local_ranks[rank], here, local_ranks=local_ranks)


def config_of(folder, **sections):
    return make_config(folder, "/no/such/model", **sections)


@pytest.mark.parametrize("schedule", [{}, {"stripe": 1, "stripes": 3}])
def test_the_parts_of_all_nodes_together_are_the_whole_plan(tmp_path, schedule):
    config = config_of(tmp_path, schedule=schedule | {"helps": False})
    machines = [Stripe.of(generators.striped(config, world_of(r)).schedule) for r in (0, 2)]
    parts = [[request for request in PLAN if each.whole.holds(request)] for each in machines]
    together = [request.key for part in parts for request in part]
    own = Stripe.of(config.schedule).whole
    assert sorted(together) == sorted(r.key for r in PLAN if own.holds(r))
    assert all(parts)


def test_a_single_node_makes_all_as_configured(tmp_path):
    config = config_of(tmp_path)
    assert generators.striped(config, world_of(1, (0, 1))) is config


def test_with_wait_every_node_makes_the_whole_plan(tmp_path):
    config = config_of(tmp_path, mixing={"starvation": "wait"})
    assert generators.striped(config, world_of(2)) is config


def test_every_node_has_a_folder_whose_configuration_can_be_read(tmp_path):
    for rank in (0, 2):
        config = config_of(tmp_path, cache={"path": tmp_path / f"cache{rank}"})
        folder = generators.node_folder(config, world_of(rank), tmp_path)
        read = load_config(folder / "config.yaml")
        assert read.cache.path == tmp_path / f"cache{rank}"
        assert (read.schedule.stripe, read.schedule.stripes) == (rank // 2, 2)
        assert folder.name == f"node{rank // 2}"


def test_the_processes_of_a_single_node_read_the_configuration_of_the_run(tmp_path):
    assert generators.node_folder(config_of(tmp_path), world_of(0, (0, 1)), tmp_path) == tmp_path


def test_a_run_directory_that_another_node_does_not_see_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(assembly, "SHARED_WITHIN_S", 0.0)
    with pytest.raises(UserError, match=r"run\.dir must be a folder that all nodes share"):
        assembly.check_shared(world_of(0, (0,)), tmp_path)
    (tmp_path / "config.yaml").touch()
    assembly.check_shared(world_of(0, (0,)), tmp_path)


def test_nodes_that_plan_other_images_are_refused(monkeypatch, tmp_path, tiny_model):
    experiment = make_experiment(tmp_path, tiny_model, finetune={"enabled": False})
    check_same_plan(experiment, world_of(0, (0,)))
    monkeypatch.setattr(world, "agree", lambda world, n: max(n, 5))
    with pytest.raises(UserError, match="the plan must be the same on every node"):
        check_same_plan(experiment, world_of(0, (0,)))


def test_a_run_that_makes_nothing_needs_an_image_to_serve(experiment_of):
    experiment, _ = experiment_of(devices={"generate": "none"})
    path = experiment.config.cache.path
    check_served(experiment, generates=True)
    refused = f"^cache.path must hold images of this recipe .*, got 0 of .* in {path}: make them "
    with pytest.raises(UserError, match=refused):
        check_served(experiment, generates=False)
    assert not path.exists()
    request = experiment.plan[0]
    with open_store(experiment.config, experiment.splits.train).open() as store:
        pixels = np.zeros((16, 16, 3), np.uint8)
        store.put_many([Entry(request.to_fields(), pixels)])
    check_served(experiment, generates=False)


@pytest.fixture
def half_filled(experiment_of):
    """Two images that a run would wait for, and the cache with all others of its plan."""
    experiment, _ = experiment_of(mixing={"starvation": "wait", "synthetic_probability": 1})
    pixels = np.zeros((16, 16, 3), np.uint8)
    with open_store(experiment.config, experiment.splits.train).open() as store:
        store.put_many([Entry(each.to_fields(), pixels) for each in experiment.plan[2:]])
    return experiment


def test_images_that_a_run_would_wait_for_in_vain_are_counted_before_the_start(half_filled):
    whole = len(half_filled.plan)
    lacking = rf"^cache.path must hold all .* lacks 2 of {whole}: make them first \(online-aug fill"
    with pytest.raises(UserError, match=lacking):
        check_served(half_filled, generates=False)


def test_a_run_may_wait_for_images_that_another_process_makes(half_filled):
    with open_store(half_filled.config, half_filled.splits.train).open() as store:
        store.claim([half_filled.plan[0].key], Owner.current(), 60.0)
    check_served(half_filled, generates=False)


def test_a_run_needs_no_more_of_the_plan_than_it_has_slots(experiment_of):
    experiment, _ = experiment_of(
        mixing={"starvation": "wait", "synthetic_probability": 0.5}, run={"epochs": 1}
    )
    order = order_of(experiment.config, experiment.splits.train)
    wanted = int(order.kinds(0)[0].sum())
    assert 0 < needed_of(experiment) == wanted < len(experiment.plan)


def saved_with(run, foregrounds):
    folder = checkpoint_path(run / "checkpoints", 4)
    folder.mkdir(parents=True)
    (folder / "complete.json").write_text("{}")
    torch.save({"foregrounds": foregrounds}, own_state_path(folder, rank=0))
    return run


def test_a_run_made_with_other_foregrounds_is_neither_resumed_nor_replayed(experiment_of, tmp_path):
    experiment, _ = experiment_of(
        method={"name": "paste"},
        saliency={"method": "spectral_residual"},
        devices={"train": "cpu", "generate": "none"},
    )
    check_foregrounds(experiment, saved_with(tmp_path / "same", experiment.saliency.version))
    check_foregrounds(experiment, tmp_path / "none")
    other = saved_with(tmp_path / "other", "spectral-9")
    for key in ("run.resume", "run.replay"):
        with pytest.raises(UserError, match=rf"^{key} needs the foregrounds .*\(spectral-9\)"):
            check_foregrounds(experiment, other, key)


def test_a_run_of_real_images_needs_none_to_serve(experiment_of):
    experiment, _ = experiment_of(mixing={"synthetic_probability": 0})
    check_served(experiment, generates=False)
