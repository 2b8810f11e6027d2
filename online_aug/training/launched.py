"""How many ranks a run has and which process this is, by the launcher above or the hostfile."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from online_aug.config import DevicesConfig
from online_aug.training.hostfile import read_hostfile
from online_aug.training.launcher import RECORD, is_launched
from online_aug.training.node import this_node

_LOCAL_SIZES = ("LOCAL_WORLD_SIZE", "LOCAL_SIZE")
"""Ranks of this node, as torchrun and DeepSpeed say it."""


@dataclass(frozen=True)
class Layout:
    """The ranks of a run as far as somebody else than `devices.train` decides them."""

    here: int | None = None
    """On this node; None leaves it to `devices.train`."""
    ranks: int | None = None
    """Of all nodes; None if they are those of this one."""
    hosts: Mapping[str, int] | None = None
    """Ranks by machine, where this process is to start the run on all of them."""


def layout_of(devices: DevicesConfig) -> Layout:
    """What a launcher above has started, or a hostfile asks for.

    Under a launcher that is not ours the hostfile is that launcher's business.

    Raises:
        UserError: If the hostfile is none.
    """
    node = this_node()
    if node is not None:
        return Layout(node.ranks, sum(node.slots))
    if is_launched():
        said = [os.environ[name] for name in _LOCAL_SIZES if name in os.environ]
        is_known = said and RECORD not in os.environ  # what ours starts is as planned
        return Layout(int(said[0]) if is_known else None, int(os.environ.get("WORLD_SIZE", 1)))
    if devices.hostfile is None:
        return Layout()
    hosts = read_hostfile(devices.hostfile)
    return Layout(next(iter(hosts.values())), sum(hosts.values()), hosts)


def is_first_process() -> bool:
    """The first rank; without a launcher above, the process of the first machine."""
    if is_launched():
        return os.environ.get("RANK", "0") == "0"
    node = this_node()
    return node is None or node.number == 0


def is_first_of_node() -> bool:
    """No launcher above, or the first rank that it started on this node."""
    return os.environ.get("LOCAL_RANK", "0") == "0"
