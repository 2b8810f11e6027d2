"""What differs between the nodes of a run."""

import pytest
import torch
from experiment_samples import make_config, make_experiment
from request_samples import make_plan, make_sources

from online_aug.config.loading import load_config
from online_aug.distributed import world
from online_aug.distributed.world import World
from online_aug.errors import UserError
from online_aug.producer.request_queue import part_of
from online_aug.training import build_loader
from online_aug.training.build_loader import agreed_plan

PLAN = make_plan(make_sources(60), 2)


def world_of(rank, local_ranks=(0, 1, 0, 1)):
    here = torch.device("cpu")
    return World(rank, len(local_ranks), local_ranks[rank], here, local_ranks=local_ranks)


def config_of(folder, **sections):
    return make_config(folder, "/no/such/model", **sections)


@pytest.mark.parametrize("schedule", [{}, {"stripe": 1, "stripes": 3}])
def test_the_parts_of_all_nodes_are_the_whole_of_what_one_would_make(tmp_path, schedule):
    config = config_of(tmp_path, schedule=schedule | {"helps": False})
    parts = [part_of(PLAN, build_loader.striped(config, world_of(r)).schedule) for r in (0, 2)]
    together = [request.key for part in parts for request in part]
    assert sorted(together) == sorted(r.key for r in part_of(PLAN, config.schedule))
    assert all(parts)


def test_a_single_node_makes_all_as_configured(tmp_path):
    config = config_of(tmp_path)
    assert build_loader.striped(config, world_of(1, (0, 1))) is config


def test_where_images_are_waited_for_every_node_makes_all(tmp_path):
    config = config_of(tmp_path, mixing={"starvation": "wait"})
    assert build_loader.striped(config, world_of(2)) is config


def test_every_node_has_a_folder_whose_configuration_can_be_read(tmp_path):
    for rank in (0, 2):
        config = config_of(tmp_path, cache={"path": tmp_path / f"cache{rank}"})
        folder = build_loader.node_folder(config, world_of(rank), tmp_path)
        read = load_config(folder / "config.yaml")
        assert read.cache.path == tmp_path / f"cache{rank}"
        assert (read.schedule.stripe, read.schedule.stripes) == (rank // 2, 2)
        assert folder.name == f"node{rank // 2}"


def test_the_processes_of_a_single_node_read_the_configuration_of_the_run(tmp_path):
    assert build_loader.node_folder(config_of(tmp_path), world_of(0, (0, 1)), tmp_path) == tmp_path


def test_a_run_directory_that_another_node_does_not_see_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(build_loader, "SHARED_WITHIN_S", 0.0)
    with pytest.raises(UserError, match=r"run\.dir must be a folder that all nodes share"):
        build_loader.check_shared(world_of(0, (0,)), tmp_path)
    (tmp_path / "config.yaml").touch()
    build_loader.check_shared(world_of(0, (0,)), tmp_path)


def test_nodes_that_plan_other_images_are_refused(monkeypatch, tmp_path, tiny_model):
    experiment = make_experiment(tmp_path, tiny_model, finetune={"enabled": False})
    keys = agreed_plan(experiment, world_of(0, (0,)))
    assert keys == [request.key for request in experiment.plan]
    monkeypatch.setattr(world, "agree", lambda world, n: max(n, 5))
    with pytest.raises(UserError, match="the plan must be the same on every node"):
        agreed_plan(experiment, world_of(0, (0,)))
