"""How many ranks there are and which process this is."""

import pytest

from online_aug.config.training import DevicesConfig
from online_aug.distributed import cluster
from online_aug.distributed.cluster import Layout
from online_aug.distributed.launcher import NODE, RECORD, Node, this_node

NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_SIZE", RECORD, NODE)
TORCHRUN = {"RANK": "2", "LOCAL_RANK": "0", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}
DEEPSPEED = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "LOCAL_SIZE": "2"}
SECOND = {NODE: Node(1, (2, 3), "10.0.0.1", 29500).to_text()}
HOSTS = {"node-a": 4, "node-b": 2}


@pytest.fixture
def say(monkeypatch):
    def set_variables(variables):
        for name in NAMES:
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_variables


@pytest.fixture
def devices(tmp_path):
    path = tmp_path / "hosts"
    path.write_text("".join(f"{name} slots={slots}\n" for name, slots in HOSTS.items()))
    return DevicesConfig(hostfile=path)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        (TORCHRUN, Layout(here=2, ranks=4)),
        (DEEPSPEED, Layout(here=2, ranks=4)),
        (DEEPSPEED | {RECORD: "folder"}, Layout(here=None, ranks=4)),
        ({"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}, Layout(here=None, ranks=2)),
        (SECOND, Layout(here=3, ranks=5)),
        (SECOND | DEEPSPEED | {RECORD: "folder"}, Layout(here=3, ranks=5)),
        ({}, Layout(here=4, ranks=6, hosts=HOSTS)),
    ],
)
def test_a_launcher_decides_before_the_hostfile(say, devices, variables, expected):
    say(variables)
    assert cluster.layout_of(devices) == expected


def test_without_launcher_and_hostfile_the_devices_decide(say):
    say({})
    assert cluster.layout_of(DevicesConfig()) == Layout()


@pytest.mark.parametrize(
    ("variables", "is_first", "is_first_of_node"),
    [
        ({}, True, True),
        (TORCHRUN, False, True),
        (TORCHRUN | {"RANK": "0"}, True, True),
        (DEEPSPEED, False, False),
        (SECOND, False, True),
        ({NODE: Node(0, (2, 3), "10.0.0.1", 29500).to_text()}, True, True),
    ],
)
def test_one_process_of_all_and_one_of_a_node_come_first(
    say, variables, is_first, is_first_of_node
):
    say(variables)
    assert cluster.is_first_process() == is_first
    assert cluster.is_first_of_node() == is_first_of_node


def test_a_node_is_read_as_it_was_written(say):
    say(SECOND)
    assert this_node() == Node(1, (2, 3), "10.0.0.1", 29500)
    assert this_node().ranks == 3
