"""The generation processes of a node: device, part and log of each; begun early, always ended."""

from types import SimpleNamespace

import pytest
import torch
from experiment_samples import make_config

from online_aug.distributed.devices import DevicePlan
from online_aug.distributed.world import World
from online_aug.processes import packages_first
from online_aug.producer.messages import Placement
from online_aug.training import generators
from online_aug.training.generators import (
    begin_early,
    build_generators,
    own_generators,
    warm_generators,
)


@pytest.mark.parametrize(
    ("generate", "visible", "sees", "device"),
    [
        ("cpu", None, "", "cpu"),
        ("cpu", "0,1", "", "cpu"),
        ("cuda:1", None, "1", "cuda:0"),
        ("cuda:1", "4,7", "7", "cuda:0"),
        ("cuda:0", "GPU-abc,GPU-def", "GPU-abc", "cuda:0"),
    ],
)
def test_the_generation_process_sees_its_own_device_alone(
    monkeypatch, tmp_path, generate, visible, sees, device
):
    share = 0.25 if generate == "cuda:0" else 0.0  # training is there too
    made = []
    monkeypatch.setattr(generators, "Supervisor", lambda *arguments: made.append(arguments))
    monkeypatch.setattr(generators, "SupervisorGroup", list)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    plan = DevicePlan(
        train=("cuda:0",), generate=(generate,), train_threads=4, generate_threads=3, share=0.25
    )
    build_generators(plan, tmp_path)
    ((command, log, environment),) = made
    *words, place = command
    assert words == ["-P", "-m", "online_aug.producer", str(tmp_path / "config.yaml")]
    assert Placement.model_validate_json(place) == Placement(device=device, threads=3, share=share)
    here = {"OMP_NUM_THREADS": "3", "CUDA_VISIBLE_DEVICES": sees}
    assert environment == packages_first() | here
    assert log == tmp_path / "generator.log"


def test_every_device_has_a_process_with_a_part_and_a_log_of_its_own(monkeypatch, tmp_path):
    made = []
    monkeypatch.setattr(generators, "Supervisor", lambda *arguments: made.append(arguments))
    monkeypatch.setattr(generators, "SupervisorGroup", list)
    devices = ("cuda:1", "cuda:2")
    plan = DevicePlan(train=("cuda:0",), generate=devices, train_threads=4, generate_threads=3)
    build_generators(plan, tmp_path)
    places = [Placement.model_validate_json(command[-1]) for command, _, _ in made]
    assert [(place.number, place.count) for place in places] == [(0, 2), (1, 2)]
    assert [log.name for _, log, _ in made] == ["generator.log", "generator1.log"]
    assert [environment["CUDA_VISIBLE_DEVICES"] for *_, environment in made] == ["1", "2"]


CPU = DevicePlan(train=("cpu",), generate=("cpu",), train_threads=1, generate_threads=1)
SHARED = DevicePlan(
    train=("cuda:0",), generate=("cuda:0",), train_threads=1, generate_threads=1, share=0.5
)


@pytest.fixture
def group(monkeypatch):
    """Stands for the processes of a node: keeps what it is told."""
    told = []
    fake = SimpleNamespace(
        told=told,
        warm_up=lambda: told.append("warm up"),
        start=lambda: told.append("start"),
        stop=lambda: told.append("stop"),
    )
    monkeypatch.setattr(generators, "build_generators", lambda devices, folder: fake)
    return fake


def test_processes_that_are_warmed_up_end_with_the_block_if_it_fails(group, tmp_path):
    with (
        pytest.raises(ZeroDivisionError),
        warm_generators(make_config(tmp_path, "embedded"), CPU, tmp_path),
    ):
        raise ZeroDivisionError
    assert group.told == ["warm up", "stop"]


@pytest.mark.parametrize(
    ("sections", "generate"), [({"mixing": {"synthetic_probability": 0}}, ("cpu",)), ({}, ())]
)
def test_no_process_is_warmed_up_that_has_nothing_to_make(group, tmp_path, sections, generate):
    devices = DevicePlan(train=("cpu",), generate=generate, train_threads=1, generate_threads=1)
    with warm_generators(make_config(tmp_path, "embedded", **sections), devices, tmp_path) as found:
        assert found is None
    assert group.told == []


@pytest.mark.parametrize(
    ("devices", "sections", "begins"),
    [
        (CPU, {}, True),
        (CPU, {"mixing": {"starvation": "wait"}}, True),
        (CPU, {"mixing": {"starvation": "wait"}, "cache": {"max_gib": 1}}, False),
        (SHARED, {}, False),
    ],
)
def test_generation_begins_before_the_classifier_is_built_unless_that_could_do_harm(
    group, tmp_path, devices, sections, begins
):
    begin_early(group, make_config(tmp_path, "embedded", **sections), devices)
    assert group.told == ["start"] * begins


@pytest.mark.parametrize(("rank", "told"), [(0, ["warm up", "start", "stop"]), (1, [])])
def test_the_first_rank_of_a_node_alone_owns_its_processes(group, tmp_path, rank, told):
    world = World(rank, 2, rank, torch.device("cpu"))
    with own_generators(make_config(tmp_path, "embedded"), CPU, world, tmp_path) as found:
        assert (found is group) == (rank == 0)
    assert group.told == told


def test_processes_that_run_already_are_left_to_whoever_started_them(group, tmp_path):
    world = World(0, 1, 0, torch.device("cpu"))
    with own_generators(make_config(tmp_path, "embedded"), CPU, world, tmp_path, group) as found:
        assert found is group
    assert group.told == []
