"""The rank of this process in the run, read from what a launcher puts into the environment.

A launcher is DeepSpeed's, torchrun's, or our own, which marks its ranks with `LAUNCH_FOLDER`.
"""

import os
from dataclasses import dataclass

from online_aug.errors import UserError

LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""The variables that every launcher sets in a rank."""
LAUNCH_FOLDER = "ONLINE_AUG_LAUNCH"
"""Set in the ranks of our own launcher: the folder in which the first to fail notes its status."""
LAUNCHER_PID = "ONLINE_AUG_LAUNCHER_PID"
"""Set in the ranks of our own launcher and in DeepSpeed's launcher below it: its process id."""
PARENT_PID = "ONLINE_AUG_PARENT_PID"
"""Set in the ranks of our own launcher: the process id of DeepSpeed's launcher."""
VISIBLE_DEVICES = "ONLINE_AUG_VISIBLE_DEVICES"
"""Set in the ranks of our own launcher: CUDA_VISIBLE_DEVICES before DeepSpeed changed it."""
LAUNCHER_S = 5.0
"""A launcher ends the ranks beside one that failed within this many seconds."""

SPEAKS_FOR_NODE = os.environ.get("LOCAL_RANK", "0") == "0"
"""Whether this process reports the mistakes that all ranks of its node find."""
_LOCAL_SIZES = ("LOCAL_WORLD_SIZE", "LOCAL_SIZE")
"""The number of ranks of this node, as torchrun and as DeepSpeed name it."""
RANK_VARIABLES = (
    *LAUNCHER_VARIABLES,
    *_LOCAL_SIZES,
    *("GROUP_RANK", "ROLE_RANK", "ROLE_WORLD_SIZE", "CROSS_RANK", "CROSS_SIZE", "NODE_RANK"),
)
"""All that launchers tell a rank; a process that is no rank must not see them."""


@dataclass(frozen=True, kw_only=True)
class Identity:
    """The place of this process among the ranks; without a launcher it is the only one."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int | None = None
    """Number of ranks of this node; None if `devices.train` decides it."""
    is_launched: bool = False
    """Whether a launcher started this process, ours or another."""
    is_ours: bool = False
    """Whether our own launcher started it: devices and data have been checked before."""

    @property
    def launched_ranks(self) -> int | None:
        """Number of ranks of all nodes; None if `devices.train` decides it."""
        return self.world_size if self.is_launched else None

    @property
    def is_first(self) -> bool:
        """Whether this process says and writes what is said and written once in a run."""
        return self.rank == 0

    @property
    def is_first_of_node(self) -> bool:
        """Whether this process does what is done once on a node."""
        return self.local_rank == 0


def identify() -> Identity:
    """Read the environment of this process.

    Raises:
        UserError: If a launcher set only some of its variables, or one of them to no number.
    """
    if "RANK" not in os.environ and "LOCAL_RANK" not in os.environ:
        return Identity()
    lacking = [name for name in LAUNCHER_VARIABLES if name not in os.environ]
    if lacking:
        raise UserError(
            f"a launcher must set {', '.join(LAUNCHER_VARIABLES)}, {', '.join(lacking)} missing: "
            "unset RANK and LOCAL_RANK to train without one"
        )
    is_ours = LAUNCH_FOLDER in os.environ
    sizes = [_number(name) for name in _LOCAL_SIZES if name in os.environ and not is_ours]
    return Identity(
        rank=_number("RANK"),
        world_size=_number("WORLD_SIZE"),
        local_rank=_number("LOCAL_RANK"),
        local_world_size=next(iter(sizes), None),
        is_launched=True,
        is_ours=is_ours,
    )


def _number(name: str) -> int:
    text = os.environ[name]
    if not text.isdecimal():
        raise UserError(f"a launcher must set {name} to a whole number, got {text!r}")
    return int(text)
