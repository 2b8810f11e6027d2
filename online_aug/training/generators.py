"""The generation processes of a node: where each one runs, what it makes, when it begins.

Importing and loading a diffusion model takes as long as some epochs of a small classifier. So the
processes import their libraries while the run is prepared, and load the model and make the first
images while the classifier is built.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from online_aug.config import Config
from online_aug.config.loading import resolved_yaml
from online_aug.distributed.devices import DevicePlan
from online_aug.distributed.world import World
from online_aug.files import write_atomically
from online_aug.processes import packages_first
from online_aug.producer.messages import Placement
from online_aug.producer.supervisor import Supervisor, SupervisorGroup
from online_aug.reporting.run_directory import CONFIG_FILE


@dataclass(frozen=True)
class Generation:
    """The generation processes that a rank owns, and the cache before they began."""

    processes: SupervisorGroup | None
    """None if another rank owns them, or nothing is generated."""
    position: int | None = None
    """Last position of the cache's log before any of them began, noted by every rank; None notes it
    now."""


@contextmanager
def warm_generators(
    config: Config, devices: DevicePlan, folder: Path
) -> Iterator[SupervisorGroup | None]:
    """Start the generation processes of a node, which import their libraries and then wait.

    They end with the block, however that ends. None if nothing is to be generated.

    Args:
        config: Says whether images are planned.
        devices: Devices of the node.
        folder: Folder that holds their `config.yaml` and gets their logs.
    """
    if not devices.generate or not config.is_planned:
        yield None
        return
    generators = build_generators(devices, folder)
    try:
        generators.warm_up()
        yield generators
    finally:
        generators.stop()


@contextmanager
def own_generators(
    config: Config,
    devices: DevicePlan,
    world: World,
    run_directory: Path,
    warm: SupervisorGroup | None = None,
) -> Iterator[SupervisorGroup | None]:
    """Give the first rank of a node its generation processes and let them begin, the others none.

    Args:
        config: The configuration of the run.
        devices: Devices of the node.
        world: This rank among all ranks.
        run_directory: Folder of the run.
        warm: Processes that somebody has started and ends; None starts them, for the block.
    """
    if warm is not None:
        yield warm
    elif not world.is_first_of_node:
        yield None
    else:
        folder = node_folder(config, world, run_directory)
        with warm_generators(config, devices, folder) as generators:
            begin_early(generators, config, devices)
            yield generators


def begin_early(generators: SupervisorGroup | None, config: Config, devices: DevicePlan) -> None:
    """Let generation begin before the classifier is built, unless that could do harm.

    A model that shares a GPU is fitted into the memory that the classifier leaves. Images that a
    run waits for are protected from eviction first. In both cases the loader's first batch begins.
    """
    is_shared = any(map(devices.is_shared, devices.generate))
    may_evict = config.mixing.starvation == "wait" and config.cache.max_gib is not None
    if generators is not None and not is_shared and not may_evict:
        generators.start()


def build_generators(devices: DevicePlan, folder: Path) -> SupervisorGroup:
    """Return the generation processes of a node, each on its own device; none is started.

    Args:
        devices: Devices of the node.
        folder: Folder that holds their `config.yaml` and gets their logs.
    """
    count = len(devices.generate)
    return SupervisorGroup([_supervisor(devices, number, folder) for number in range(count)])


def _supervisor(devices: DevicePlan, number: int, folder: Path) -> Supervisor:
    device = devices.generate[number]
    visible, seen_as = _alone_visible(device)
    place = Placement(
        device=seen_as,
        threads=devices.generate_threads,
        number=number,
        count=len(devices.generate),
        share=devices.share if devices.is_shared(device) else 0.0,
    )
    environment = {
        **packages_first(),
        "OMP_NUM_THREADS": str(place.threads),
        "CUDA_VISIBLE_DEVICES": visible,
    }
    config = str(folder / "config.yaml")
    log = folder / f"generator{number or ''}.log"
    command = ["-P", "-m", "online_aug.producer", config, place.model_dump_json()]
    return Supervisor(command, log, environment)


def _alone_visible(device: str) -> tuple[str, str]:
    """Return CUDA_VISIBLE_DEVICES for a process with this device only, and its name there."""
    if device == "cpu":
        return "", device
    number = int(device.partition(":")[2])
    names = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return names[number] if names else str(number), "cuda:0"


def node_folder(config: Config, world: World, run_directory: Path) -> Path:
    """Return the folder with the configuration and the logs of this node's generation processes.

    It is the run directory if there is one node. Each of several nodes has a folder in it with a
    configuration of its own, which may name another `cache.path` and has its part of the plan.
    """
    if world.nodes == 1:
        return run_directory
    folder = run_directory / f"node{world.node}"
    folder.mkdir(exist_ok=True)
    write_atomically(folder / CONFIG_FILE, resolved_yaml(striped(config, world)))
    return folder


def striped(config: Config, world: World) -> Config:
    """Return the configuration by which a node makes its own part of the plan and nothing else.

    With `mixing.starvation: wait` each node makes the whole plan: the seed decides which image
    fills a slot, so over the epochs every image is served on every node, from its own cache.
    """
    schedule = config.schedule
    if world.nodes == 1 or config.mixing.starvation == "wait":
        return config
    part = {
        "stripe": schedule.stripe + schedule.stripes * world.node,
        "stripes": schedule.stripes * world.nodes,
        "helps": False,
    }
    return config.model_copy(update={"schedule": schedule.model_copy(update=part)})
