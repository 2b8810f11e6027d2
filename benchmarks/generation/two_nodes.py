"""Measure how much sooner two launchers of `fill` make a plan than one, on a core each.

python -m benchmarks.generation.two_nodes RECIPE [KEY=VALUE ...] [--rounds 1]

Each launcher stands for a node: it is held to one core of its own, begins with its own part of the
plan, and has a cache of its own. One launcher alone, held to one core, makes the same plan in turns
with them. The two caches are merged, and must hold the same images as the one, each made once.

The time of the two is that of the slower one and of the merge. Wall time is what a person waits;
on a machine with other work it says little, and the time on a core stands beside it, from the
kernel's account of each process: all of it, start-up and imports too.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cache import Store

PLAN = ("finetune.enabled=false", "data.examples_per_class=16", "generation.variants_per_image=5")
PART = ("schedule.helps=false", "mixing.starvation=substitute")
REACH = 0.6
"""Share of one launcher's time that two may take."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Seconds that one command took, or several at once."""

    wall_s: float
    core_s: float


def main(argv: Sequence[str] | None = None) -> int:
    """Print the time of both sides in every round; return 1 if the two make other images."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*", help="keys, beside those of the small plan")
    parser.add_argument("--rounds", type=int, default=1, help="turns of both sides")
    options = parser.parse_intermixed_args(argv)
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        sys.stderr.write("error: two launchers need two cores, got one\n")
        return 2
    words = [options.recipe, *PLAN, *options.overrides]
    sys.stdout.write(f"{'':30} {'wall s':>8} {'core s':>8} {'load':>6}\n")
    for number in range(options.rounds):
        with tempfile.TemporaryDirectory(prefix="two_nodes_") as place:
            one, two, said = measure(words, Path(place), cores)
        for name, cost in (("one launcher", one), ("two launchers and merge", two)):
            show(f"{name}, round {number + 1}", cost.wall_s, cost.core_s)
        show("two / one", two.wall_s / one.wall_s, two.core_s / one.core_s)
        sys.stdout.write(f"{said}\n")
        if not said.startswith("same"):
            return 1
    sys.stdout.write(f"to be at most {REACH} where cores are not shared\n")
    return 0


def show(name: str, wall: float, core: float) -> None:
    """Print a row, with the load of the machine in the minute before."""
    sys.stdout.write(f"{name:30} {wall:8.2f} {core:8.2f} {os.getloadavg()[0]:6.1f}\n")
    sys.stdout.flush()


def measure(words: Sequence[str], place: Path, cores: Sequence[int]) -> tuple[Cost, Cost, str]:
    """Make one plan by one launcher and by two; return both times, and whether both made the same.

    Args:
        words: Recipe and keys.
        place: An empty folder.
        cores: At least two; the first two are used.
    """
    whole, parts = place / "one", [place / "part0", place / "part1"]
    one = timed([fill([*words, f"cache.path={whole}"], {}, cores[0])])
    launched = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "here", "MASTER_PORT": "1"}
    nodes = [
        fill([*words, f"cache.path={part}", *PART], {**launched, "RANK": str(rank)}, cores[rank])
        for rank, part in enumerate(parts)
    ]
    two = timed(nodes)
    joined = place / "two"
    merge = ["-m", "cache", "merge", *map(str, parts), "--into", str(joined)]
    end = timed([start(merge, {}, cores[0])])
    two = Cost(wall_s=two.wall_s + end.wall_s, core_s=two.core_s + end.core_s)
    return one, two, compared(whole, parts, joined)


def fill(words: Sequence[str], told: Mapping[str, str], core: int) -> "subprocess.Popen[bytes]":
    """Start `online-aug fill` on one core."""
    return start(["-m", "online_aug", "fill", *words], told, core)


def start(command: Sequence[str], told: Mapping[str, str], core: int) -> "subprocess.Popen[bytes]":
    """Start a command of ours on one core, with further variables in its environment."""
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "SLURM_PROCID")
    kept = {name: value for name, value in os.environ.items() if name not in names}
    return subprocess.Popen(
        ["taskset", "--cpu-list", str(core), sys.executable, *command],
        env={**kept, "OMP_NUM_THREADS": "1", **told},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )


def timed(processes: "Sequence[subprocess.Popen[bytes]]") -> Cost:
    """Wait for commands that were started just now; return the time of the slowest.

    Raises:
        RuntimeError: If one fails.
    """
    began, core_s = time.monotonic(), []
    for process in processes:
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise RuntimeError(f"{process.args} must succeed, got {process.returncode}")
        core_s.append(used.ru_utime + used.ru_stime)
    return Cost(wall_s=time.monotonic() - began, core_s=max(core_s))


def compared(whole: Path, parts: Sequence[Path], joined: Path) -> str:
    """Say whether the parts share no image and are together what one launcher has made."""
    alone, together = images_of(whole), images_of(joined)
    counts = [len(images_of(part)) for part in parts]
    if sum(counts) != len(together):
        return f"twice: parts of {counts} images are {len(together)} together"
    if alone != together:
        return f"others: {len(alone.items() ^ together.items()) // 2} images differ"
    return f"same {len(alone)} images under the same keys, {' + '.join(map(str, counts))} made"


def images_of(path: Path) -> dict[bytes, bytes]:
    """Return the pixels of every image in a cache by its key."""
    with Store(path, readonly=True) as store:
        found = ((key, store.get(key)) for _, key in store.tail())
        return {key: record.image.tobytes() for key, record in found if record is not None}


if __name__ == "__main__":
    sys.exit(main())
