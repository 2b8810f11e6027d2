"""The rank of this process in the run, read from what a launcher puts into the environment.

A launcher is DeepSpeed's, torchrun's, or our own, which marks its ranks with `LAUNCH_FOLDER`.
"""

import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from online_aug.errors import UserError, one_line

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

_LARGEST_PORT = 65535
_MOST_DIGITS = 9
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
        UserError: If a launcher set only some of its variables, or some to what cannot be; one line
            names all of them.
    """
    if "RANK" not in os.environ and "LOCAL_RANK" not in os.environ:
        return Identity()
    if lacking := [name for name in LAUNCHER_VARIABLES if name not in os.environ]:
        raise UserError(
            f"a launcher must set {', '.join(LAUNCHER_VARIABLES)}, {', '.join(lacking)} missing: "
            "unset RANK and LOCAL_RANK to train without one"
        )
    is_ours = LAUNCH_FOLDER in os.environ
    sizes = [name for name in _LOCAL_SIZES if name in os.environ and not is_ours]
    if wrong := list(_mistakes(sizes)):
        raise UserError(
            f"a launcher must set {', '.join(wrong)}: unset RANK and LOCAL_RANK to train without "
            "one"
        )
    return Identity(
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
        local_rank=int(os.environ["LOCAL_RANK"]),
        local_world_size=int(os.environ[sizes[0]]) if sizes else None,
        is_launched=True,
        is_ours=is_ours,
    )


@dataclass(frozen=True, kw_only=True)
class LaunchedPart:
    """The place of this process among those that make one plan and never meet."""

    number: int = 0
    count: int = 1
    local_number: int | None = None
    """Number of this process on its machine; None without a launcher."""


def launched_part() -> LaunchedPart:
    """Read the place of this process from what DeepSpeed, torchrun or Slurm's srun tells it.

    Raises:
        UserError: If the variables contradict one another.
    """
    if "RANK" in os.environ or "LOCAL_RANK" in os.environ:
        me = identify()
        return LaunchedPart(number=me.rank, count=me.world_size, local_number=me.local_rank)
    # A script of sbatch sees the job's number of tasks too; srun alone sets that of a step.
    names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
    if any(name not in os.environ for name in names):
        return LaunchedPart()
    number, count, local = (_number(name) for name in names)
    if number is None or local is None or not count or number >= count:
        said = ", ".join(f"{name}={os.environ[name]!r}" for name in names)
        raise UserError(
            f"Slurm must set SLURM_PROCID below SLURM_STEP_NUM_TASKS, and SLURM_LOCALID, got {said}"
        )
    return LaunchedPart(number=number, count=count, local_number=local)


def speaks_for_node() -> bool:
    """Return whether this process reports the mistakes that all ranks of its node find."""
    try:
        return identify().local_rank == 0
    except UserError:
        return True  # who would else


def check_master() -> None:
    """Refuse the address of a first rank that no machine has; it may take a second to look up.

    Raises:
        UserError: If so.
    """
    me = identify()
    if me.world_size == 1:
        return
    address, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    try:
        socket.getaddrinfo(address, int(port))
    except (OSError, UnicodeError) as error:
        raise UserError(
            f"a launcher must set MASTER_ADDR to the name or address of the first rank's machine, "
            f"got {address!r} ({one_line(error)})"
        ) from None


def _mistakes(sizes: Sequence[str]) -> Iterator[str]:
    """Yield what each variable must be and is not."""
    numbers = {name: _number(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", *sizes)}
    for name, number in numbers.items():
        if number is None:
            yield f"{name} to a whole number, got {os.environ[name]!r}"
    yield from _contradictions(numbers)
    port = _number("MASTER_PORT")
    if port is None or not 1 <= port <= _LARGEST_PORT:
        yield f"MASTER_PORT to a port, 1 to {_LARGEST_PORT}, got {os.environ['MASTER_PORT']!r}"


def _contradictions(numbers: Mapping[str, int | None]) -> Iterator[str]:
    ranks, rank, local_rank = (numbers[name] for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"))
    sizes = [name for name in _LOCAL_SIZES if numbers.get(name) is not None]
    if ranks == 0:
        yield "WORLD_SIZE to at least 1, got 0"
    if ranks and rank is not None and rank >= ranks:
        yield f"RANK below WORLD_SIZE, got {rank} of {ranks}"
    if local_rank is None:
        return
    yield from (
        f"LOCAL_RANK below {name}, got {local_rank} of {numbers[name]}"
        for name in sizes
        if local_rank >= (numbers[name] or 0)
    )
    if rank is not None and local_rank > rank:
        yield f"LOCAL_RANK to at most RANK, got {local_rank} for {rank}"


def _number(name: str) -> int | None:
    text = os.environ[name]
    is_number = text.isascii() and text.isdecimal() and len(text) <= _MOST_DIGITS
    return int(text) if is_number else None
