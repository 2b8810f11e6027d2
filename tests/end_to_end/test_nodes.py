"""Four ranks on two nodes: two launchers on this machine, each with a cache of its own."""

import json
import signal
import socket
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from tiny_runs import (
    PLANNED,
    ROOT,
    Launch,
    count_images,
    read_metrics,
    read_summary,
    run_folder,
    wait_for,
)

from cache import Store

pytestmark = [pytest.mark.slow, pytest.mark.nightly]

BATCH_SIZE = 8
STEPS = 15


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def deepspeed(folder, node, port):
    """Return the command that a person starts on each machine."""
    hosts = folder / "hosts"
    hosts.write_text("node-a slots=2\nnode-b slots=2\n")
    return [
        *("-m", "deepspeed.launcher.runner", "--quiet", "--hostfile", hosts),
        *("--no_ssh", "--node_rank", node),
        *("--master_addr", "127.0.0.1", "--master_port", port),
    ]


def torchrun(folder, node, port):
    return [
        *("-m", "torch.distributed.run", "--nnodes", 2, "--nproc_per_node", 2),
        *("--node_rank", node, "--master_addr", "127.0.0.1", "--master_port", port),
    ]


def start_nodes(launcher, config, name, *overrides):
    port = free_port()
    return [
        Launch(
            *launcher(config.parent, node, port),
            *(ROOT / "train.py", config, f"run.name={name}", "mixing.starvation=substitute"),
            *(f"optim.batch_size={BATCH_SIZE}", f"cache.path={cache_of(config, node)}"),
            "devices.train=cpu",
            *overrides,
            is_warm=False,
        )
        for node in (0, 1)
    ]


def cache_of(config, node):
    return config.parent / f"cache_of_node{node}"


def keys_of(cache):
    with Store(cache, readonly=True) as store:
        return [key for _, key in store.tail()]


@pytest.fixture(scope="module")
def _one_machine():
    """Ranks meet on the loopback, whatever this machine's name resolves to."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GLOO_SOCKET_IFNAME", "lo")
        patch.setenv("DS_ACCELERATOR", "cpu")
        yield


def ranks_below(launches):
    """The processes that DeepSpeed's launchers have started, one a rank."""
    below = [p for each in launches for p in psutil.Process(each.process.pid).children()]
    return [rank for launcher in below for rank in launcher.children()]


@dataclass
class Story:
    folder: Path
    keys: list
    """Made on each node."""
    statuses: list
    """Of the two launchers, as they were interrupted and at the end."""
    epochs: int


@pytest.fixture(scope="module")
def story(pair, config, _one_machine):
    """A run started with DeepSpeed, stopped once both nodes have images, ended under torchrun."""
    caches = [cache_of(config, node) for node in (0, 1)]
    folder = run_folder(config, "nodes")
    launches = start_nodes(deepspeed, config, "nodes", "run.epochs=100000")
    wait_for(lambda: all(map(count_images, caches)) and read_metrics(folder), launches[0])
    for rank in ranks_below(launches):
        rank.send_signal(signal.SIGTERM)
    statuses = [[launch.wait() for launch in launches]]
    epochs = len(read_metrics(folder)) + 2
    launches = start_nodes(torchrun, config, "nodes", f"run.epochs={epochs}")
    statuses.append([launch.wait() for launch in launches])
    return Story(folder, [keys_of(cache) for cache in caches], statuses, epochs)


def test_ranks_of_all_nodes_stop_together_and_go_on_under_another_launcher(story):
    assert story.statuses == [[143, 143], [0, 0]]


def test_every_epoch_is_trained_once_and_every_slot_is_counted(story):
    steps = [epoch["step"] for epoch in read_metrics(story.folder)]
    assert steps == [STEPS * (number + 1) for number in range(story.epochs)]
    summary = read_summary(story.folder)
    served = [summary[f"served_{kind}"] for kind in ("real", "fresh", "cached")]
    assert sum(served) + summary["starved"] == story.epochs * STEPS * BATCH_SIZE
    last = f"epoch{story.epochs - 1:04d}-rank*.npy"
    assert len(list((story.folder / "ledger").glob(last))) == 4


def test_no_node_makes_what_is_the_others_part(story):
    made = story.keys[0] + story.keys[1]
    assert len(made) == len(set(made))
    assert 0 < read_summary(story.folder)["generated"] <= len(made)


def test_what_is_left_is_filled_part_by_part_and_merged_into_the_whole(story, config):
    for node in (0, 1):
        Launch("-m", "online_aug", "fill", story.folder / f"node{node}" / "config.yaml").succeed()
    caches = [cache_of(config, node) for node in (0, 1)]
    parts = [keys_of(cache) for cache in caches]
    assert len(parts[0]) + len(parts[1]) == PLANNED
    merged = config.parent / "cache_of_all"
    Launch("-m", "cache", "merge", *caches, "--into", merged).succeed()
    assert set(keys_of(merged)) == {*parts[0], *parts[1]}
    stats = Launch("-m", "cache", "stats", merged, "--json").succeed()
    assert json.loads(stats.out)["entries"] == PLANNED
