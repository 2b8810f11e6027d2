"""What differs between the nodes of a run: who makes which part, from which configuration."""

import time
from pathlib import Path

from online_aug.config import Config
from online_aug.config_files import resolved_yaml
from online_aug.errors import UserError
from online_aug.reporting.atomic import write_atomically
from online_aug.reporting.run_directory import CONFIG_FILE
from online_aug.training.distributed import World, agree

_LOOK_EVERY_S = 0.5
SHARED_WITHIN_S = 60.0
"""A network file system may show a new file to other machines only after a while."""


def check_shared(world: World, run_directory: Path) -> None:
    """Refuse a run directory that is another folder on another node; all ranks call it.

    Raises:
        UserError: On every rank, if one does not see what the first has written there.
    """
    until = time.monotonic() + SHARED_WITHIN_S
    while not (is_seen := (run_directory / CONFIG_FILE).is_file()) and time.monotonic() < until:
        time.sleep(_LOOK_EVERY_S)
    if agree(world, int(not is_seen)):
        raise UserError(
            f"run.dir must be a folder that all nodes share, {run_directory} is not the same on all"
        )


def node_folder(config: Config, world: World, run_directory: Path) -> Path:
    """The folder that the generation processes of this rank's node read and write their logs in.

    Of a single node it is the run directory. Of several, each has a folder in it with a
    configuration of its own: `cache.path` may be another one, and so is the part of the plan.
    """
    if world.nodes == 1:
        return run_directory
    folder = run_directory / f"node{world.node}"
    folder.mkdir(exist_ok=True)
    write_atomically(folder / CONFIG_FILE, resolved_yaml(striped(config, world)))
    return folder


def who_makes(config: Config) -> str:
    """What each of several nodes makes, for a person to read."""
    if config.mixing.starvation == "wait":
        return "each makes the whole plan (mixing.starvation=wait)"
    return "each makes its own part of the plan"


def striped(config: Config, world: World) -> Config:
    """The configuration by which a node makes its own part of the plan and nothing else.

    Where images are waited for, each node makes all: the seed decides which image fills a slot, so
    over the epochs each one comes to be served on every node, out of that node's own cache.
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
