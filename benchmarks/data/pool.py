"""Measure what a large backlog of generated images costs the loader's main process.

    python -m benchmarks.data.pool [--few 100] [--many 100000] [--pooled 1000000]

Fills a cache with small images. Takes turns in taking fresh images out of a backlog of few and of
many, from all and from the variants of one image. Then offers all images to a pool that finds them
in the cache, as a run does when it starts, and draws from them. Ends with 1 if a limit is not met.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks._timing import clock_s
from cache import Entry, Store, request_key
from online_aug.console import terminal_progress
from online_aug.loader.pool import SamplePool
from online_aug.loader.slots import Kind
from online_aug.planning import Listed, Served

VARIANTS = 10
COMMIT = 4096
ROUNDS = 20
MOST_TIMES, MOST_OFFER_S = 2.0, 5.0
_GREY = np.zeros((1, 1, 3), np.uint8)


@dataclass(frozen=True)
class Planned:
    """A request as the pool sees it: `VARIANTS` in a row have one source."""

    number: int
    method: str = "diff_mix"
    source_label: int = 0
    target_label: int = 0
    strength: float = 0.7

    @property
    def fields(self) -> dict[str, None | int | float | str]:
        """The request as the cache stores it."""
        return {"number": self.number}

    @property
    def key(self) -> bytes:
        """The cache key."""
        return request_key(self.fields)

    @property
    def source_digest(self) -> str:
        """Name of the source image."""
        return str(self.number // VARIANTS)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run both measurements; 1 if a limit is not met."""
    options = _parser().parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        store = Store(Path(folder), codec="raw", durability="process")
        plan = _filled(store, max(options.pooled, options.many))
        ratios = [
            _compare_takes(store, plan[-options.many :], options.few, is_local=is_local)
            for is_local in (False, True)
        ]
        offer_s = _offer(store, plan)
        store.close()
    is_met = max(ratios) <= MOST_TIMES and offer_s <= MOST_OFFER_S
    sys.stdout.write(
        f"at most {MOST_TIMES:g} times and {MOST_OFFER_S:g} s: {'met' if is_met else 'missed'}\n"
    )
    return 0 if is_met else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", 1)[0])
    parser.add_argument("--few", type=int, default=100, help="images of the small backlog")
    parser.add_argument("--many", type=int, default=100_000, help="images of the large backlog")
    parser.add_argument("--pooled", type=int, default=1_000_000, help="images in the cache")
    parser.add_argument("--folder", type=Path, help="where to write (default: a temporary one)")
    return parser


def _filled(store: Store, count: int) -> list[Planned]:
    plan = [Planned(number) for number in range(count)]
    with terminal_progress("filling the cache") as report:
        for first in range(0, count, COMMIT):
            store.put_many([Entry(one.fields, _GREY) for one in plan[first : first + COMMIT]])
            report(first, count)
    return plan


def _compare_takes(store: Store, plan: Sequence[Planned], few: int, *, is_local: bool) -> float:
    """Print what taking a fresh image costs; return how many times as long it takes with many."""
    pool = SamplePool(Served([Listed(plan)]), store)
    seconds: dict[int, list[float]] = {few: [], len(plan): []}
    for _ in range(ROUNDS):
        for backlog, found in seconds.items():
            pool.start(store.position() - backlog, {})
            found.append(_seconds_of_takes(pool, plan[-few:], is_local=is_local))
    small, large = (median(found) / few * 1e6 for found in seconds.values())
    sys.stdout.write(
        f"take a fresh image{' of one source' if is_local else ''}: {small:.1f} us of {few:,}, "
        f"{large:.1f} us of {len(plan):,}, {large / small:.2f} times\n"
    )
    return large / small


def _seconds_of_takes(pool: SamplePool, newest: Sequence[Planned], *, is_local: bool) -> float:
    rng = np.random.default_rng(0)
    choices = [pool.variants(one.source_digest) if is_local else None for one in newest]
    started = clock_s()
    taken = [pool.take(rng, among) for among in choices]
    seconds = clock_s() - started
    assert all(found is not None and found[0] is Kind.FRESH for found in taken)
    return seconds


def _offer(store: Store, plan: Sequence[Planned]) -> float:
    """Print and return the seconds in which a pool takes in all images of the cache."""
    pool = SamplePool(Served([Listed(plan)]), store)
    started = clock_s()
    pool.start(store.position(), {})
    offer_s = clock_s() - started
    rng, started = np.random.default_rng(0), clock_s()
    for _ in range(ROUNDS * 100):
        pool.take(rng)
    us = (clock_s() - started) / ROUNDS / 100 * 1e6
    sys.stdout.write(
        f"look up and offer {len(plan):,} images: {offer_s:.1f} s; draw one of them: {us:.1f} us\n"
    )
    return offer_s


if __name__ == "__main__":
    sys.exit(main())
