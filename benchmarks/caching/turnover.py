"""Measure how large a cache's file gets while eviction replaces its content again and again.

    python -m benchmarks.caching.turnover [--records 20000] [--bytes 20000] [--turnovers 5]

Fills a new cache under a quota and goes on writing until everything in it has been replaced
several times. Prints a line a turnover: records, their size, the size of the file pages they take,
the size of the file, and the file against both. Removes what it wrote.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from cache import Entry, Oldest, Policy, ServedFirst, Store

WIDTH_PX = 64
LIMIT = 1.15
_GIB = 2**30


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one measurement; 1 if the file outgrew its records."""
    options = _parser().parse_args(arguments)
    rng = np.random.default_rng(options.seed)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        quota = options.records * (options.bytes + 2500) / _GIB
        policy: Policy = ServedFirst() if options.policy == "served" else Oldest()
        store = Store(Path(folder), codec="raw", max_gib=quota, policy=policy)
        worst = _turn_over(store, options, rng)
        store.close()
    verdict = "within" if worst <= LIMIT else "beyond"
    sys.stdout.write(f"file against payload at most {worst:.3f}: {verdict} {LIMIT}\n")
    return 0 if worst <= LIMIT else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", 1)[0])
    parser.add_argument("--records", type=int, default=20_000, help="about how many fit in")
    parser.add_argument("--bytes", type=int, default=20_000, help="mean size of an image")
    parser.add_argument("--spread", type=float, default=0.3, help="sizes vary by this share")
    parser.add_argument("--batch", type=int, default=32, help="records a commit")
    parser.add_argument("--turnovers", type=int, default=5)
    parser.add_argument("--policy", choices=("oldest", "served"), default="oldest")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where to write (default: a temporary one)")
    return parser


def _turn_over(store: Store, options: argparse.Namespace, rng: np.random.Generator) -> float:
    sys.stdout.write("turnover  records  payload MB  pages MB  file MB  file/payload  file/pages\n")
    worst, started = 0.0, time.monotonic()
    batches = _batches(options, rng)
    for turnover in range(options.turnovers + 1):
        until = store.position() + options.records
        while store.position() < until:
            store.put_many(next(batches))
            if options.policy == "served":
                store.note_served(store.sample(rng, options.batch))
        worst = max(worst, _print_line(turnover, store.stats()))
    pace = store.position() / (time.monotonic() - started)
    sys.stdout.write(f"{pace:,.0f} images/s with one writer\n")
    return worst


def _print_line(turnover: int, stats: dict[str, int]) -> float:
    payload, pages, file = (
        stats[name] / 1e6 for name in ("payload_bytes", "stored_bytes", "file_bytes")
    )
    sys.stdout.write(
        f"{turnover:8}  {stats['entries']:7}  {payload:10.1f}  {pages:8.1f}  {file:7.1f}"
        f"  {file / payload:12.3f}  {file / pages:10.3f}\n"
    )
    sys.stdout.flush()
    return file / payload


def _batches(options: argparse.Namespace, rng: np.random.Generator) -> Iterator[list[Entry]]:
    noise = rng.integers(0, 256, (8192, WIDTH_PX, 3), dtype=np.uint8)
    low, high = (options.bytes * (1 + sign * options.spread) for sign in (-1, 1))
    number = 0
    while True:
        batch = []
        for _ in range(options.batch):
            number += 1
            height = max(1, round(rng.uniform(low, high) / WIDTH_PX / 3))
            request = {
                "method": "noise",
                "source_digest": f"{rng.integers(options.records // 10):032x}",
                "source_label": int(rng.integers(200)),
                "strength": 0.5,
                "variant": number,
            }
            batch.append(Entry(request, noise[:height]))
        yield batch


if __name__ == "__main__":
    sys.exit(main())
