"""The processor cores of this process: affinity, the quota of its cgroup, the user's wish.

A container or a job on a cluster often has a share of the machine, which the number of its cores
does not tell. More threads than that stop one another.
"""

import ctypes
import math
import os
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path

CGROUPS, OWN_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
THREADS = "OMP_NUM_THREADS"
"""The variable by which a user sets the threads of a process."""
WAITING = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
"""The variables by which a user sets how threads wait for one another."""
SPINS = "4000"
"""Turns for which a thread of libgomp, which torch uses, waits awake before it sleeps."""
KEPT_BYTES = 1 << 30
"""Freed memory that a process which computes on the CPU keeps for its next step."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's `mallopt`."""


def compute_with(threads: int, device: str) -> None:
    """Set torch's threads in this process; on the CPU, keep the memory that tensors give back.

    By default glibc returns the memory of each large tensor to the system, and a step then waits
    for pages it has just had (`benchmarks.training.kept_memory`).
    """
    import torch

    torch.set_num_threads(threads)
    keep_freed_memory(device)


def keep_freed_memory(device: str) -> None:
    """Keep about `KEPT_BYTES` of freed memory in this process, if it computes on the CPU by glibc.

    It is for processes of our own: in a user's it would change the whole program.
    """
    if device != "cpu":
        return
    set_parameter = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_parameter is not None:
        set_parameter(M_MMAP_THRESHOLD, KEPT_BYTES)
        set_parameter(M_TRIM_THRESHOLD, KEPT_BYTES)


def share_cores(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let threads that wait give their core away soon, unless the user has said how they wait.

    By default they stay awake for milliseconds, so that two runs on the same cores stop each other.
    It holds in processes that load torch later.

    Args:
        environment: Variables of this process, which its children get as well.
    """
    if not any(name in environment for name in WAITING):
        environment[WAITING[0]] = SPINS


def usable_cores() -> int:
    """Return the number of cores that this process may keep busy, at least 1."""
    allowed = len(os.sched_getaffinity(0))
    return max(1, min([allowed, *(math.ceil(quota) for quota in cpu_quotas())]))


def wished_threads(environment: Mapping[str, str] = os.environ) -> int | None:
    """Return the threads of each process that the user asks for, None without a wish."""
    first = environment.get(THREADS, "").split(",")[0].strip()  # a list is for nested regions
    return int(first) if first.isascii() and first.isdecimal() and int(first) > 0 else None


def cpu_quotas(root: Path = CGROUPS, own: Path = OWN_CGROUPS) -> Iterator[float]:
    """Yield the limit, in cores, of each cgroup that this process is in, of version 1 or 2.

    Args:
        root: Where the cgroups are mounted.
        own: The file that names those of this process.
    """
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if not controllers:
            yield from _of_version_2(root, name)
        elif "cpu" in controllers.split(","):
            for mount in (root / controllers, root / "cpu"):
                yield from _of_version_1(mount, name)


def _of_version_2(root: Path, name: str) -> Iterator[float]:
    for folder in _upwards(root, name):
        quota, *period = _words(folder / "cpu.max")
        if quota.isdecimal() and period and period[0].isdecimal():
            yield int(quota) / int(period[0])


def _of_version_1(root: Path, name: str) -> Iterator[float]:
    for folder in _upwards(root, name):
        (quota, *_), (period, *_) = (
            _words(folder / f"cpu.cfs_{part}_us") for part in ("quota", "period")
        )
        if quota.isdecimal() and period.isdecimal():  # -1 is no limit
            yield int(quota) / int(period)


def _upwards(root: Path, name: str) -> list[Path]:
    """Return the folder of a cgroup and of those it is in; a container sees its own as the root."""
    folder = root / name.strip("/")
    return [path for path in (folder, *folder.parents) if path == root or root in path.parents]


def _words(file: Path) -> list[str]:
    try:
        return file.read_text().split() or [""]
    except OSError:
        return [""]
