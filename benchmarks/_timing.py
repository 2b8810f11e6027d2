"""Times of several sides, taken in turns, so that what else the machine does meets all of them.

Time is what passes less what the thread stands in line for a core, which the kernel counts: it
holds computing and waiting for the disk or for locks, but not the load that others make.
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median

_SCHEDULING = Path("/proc/thread-self/schedstat")
"""Time on a core, time in line for one, and how often: ns."""

Side = Callable[[int], object]
"""Does its work once; the number says which repetition it is."""


def in_turns(sides: Mapping[str, Side], repetitions: int) -> dict[str, list[float]]:
    """Seconds of every repetition of every side, one uncounted repetition first."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for repetition in range(-1, repetitions):
        for name, side in sides.items():
            started = clock_s()
            side(repetition)
            if repetition >= 0:
                seconds[name].append(clock_s() - started)
    return seconds


def clock_s() -> float:
    """A clock that stands still while the calling thread is ready but has no core, s."""
    in_line_ns = int(_SCHEDULING.read_text().split()[1])
    return time.perf_counter() - in_line_ns / 1e9


def faster(seconds: Mapping[str, list[float]], name: str, other: str) -> float:
    """How many times as fast `name` was as `other`: the median over the turns."""
    pairs = zip(seconds[name], seconds[other], strict=True)
    return median(theirs / ours for ours, theirs in pairs)


def rate(seconds: Mapping[str, list[float]], name: str, items: int) -> float:
    """Items a second, median over the turns."""
    return items / median(seconds[name])
