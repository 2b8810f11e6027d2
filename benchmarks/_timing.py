"""Time several sides in turns, so that the load of other programs meets all of them alike.

The time that the thread waits for a core, which the kernel counts, is left out. Computing and
waiting for the disk or for locks count.
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median

_SCHEDULING = Path("/proc/thread-self/schedstat")
"""Time on a core, time of waiting for one, both in ns, and how often."""

Side = Callable[[int], object]
"""A function that does its work once; its argument is the number of the repetition."""


def in_turns(sides: Mapping[str, Side], repetitions: int) -> dict[str, list[float]]:
    """Return the seconds of every repetition of every side, after one that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for repetition in range(-1, repetitions):
        for name, side in sides.items():
            started = clock_s()
            side(repetition)
            if repetition >= 0:
                seconds[name].append(clock_s() - started)
    return seconds


def clock_s() -> float:
    """Return the time in s on a clock that stops while the calling thread waits for a core."""
    in_line_ns = int(_SCHEDULING.read_text().split()[1])
    return time.perf_counter() - in_line_ns / 1e9


def faster(seconds: Mapping[str, list[float]], name: str, other: str) -> float:
    """Return how many times as fast `name` was as `other`, the median over the turns."""
    pairs = zip(seconds[name], seconds[other], strict=True)
    return median(theirs / ours for ours, theirs in pairs)


def rate(seconds: Mapping[str, list[float]], name: str, items: int) -> float:
    """Return the items a second, the median over the turns."""
    return items / median(seconds[name])
