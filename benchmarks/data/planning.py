"""Measure a plan as a function beside a list of its requests, and the pass over a cache's log.

    python -m benchmarks.data.planning [--images 1280000] [--records 100000]

Prints what a request by its number, its key and its number by a record's fields cost, what a list
of the same requests costs and takes, a keyed permutation beside NumPy's shuffle, and how long it
takes to find out which images of the plan a cache holds: for the first time, again, and with a
thousandth of them new; beside it the look-up of as many listed keys.
"""

import argparse
import sys
import tempfile
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._timing import clock_s
from cache import Entry, Store
from online_aug.console import terminal_progress
from online_aug.file_digests.digests import Digests
from online_aug.methods import METHODS, MethodContext, Part, make_method
from online_aug.planning import Images, Permutation, Plan
from online_aug.planning.held import held_of

CLASSES, VARIANTS = 1000, 10
TIMED = 5000
COMMIT = 4096


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the costs of a plan and of finding its images."""
    options = _parser().parse_args(arguments)
    for name in ("diff_aug", "diff_mix"):
        plan = _plan(name, options.images)
        sys.stdout.write(f"{name}, {len(plan):,} requests of {options.images:,} images\n")
        _print_requests(plan)
    _print_permutation()
    with (
        tempfile.TemporaryDirectory(dir=options.folder) as folder,
        Store(Path(folder), codec="raw", durability="process") as store,
    ):
        _print_pass(store, plan, options.records)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", 1)[0])
    parser.add_argument("--images", type=int, default=1_280_000, help="training images")
    parser.add_argument("--records", type=int, default=100_000, help="images in the cache")
    parser.add_argument("--folder", type=Path, help="where to write (default: a temporary one)")
    return parser


def _plan(name: str, images: int) -> Plan:
    rows = np.random.default_rng(0).integers(0, 256, (images, 16), np.uint8)
    labels = np.arange(images) % CLASSES
    context = MethodContext(
        prompts=tuple(f"a photo of a <class_{label}>" for label in range(CLASSES)),
        class_sizes=tuple(np.bincount(labels, minlength=CLASSES).tolist()),
        guidance_scale=7.5,
        image_guidance_scale=1.5,
        num_inference_steps=25,
        scheduler="dpmsolver++",
        resolution=512,
        seed=0,
        generator_fingerprint="0" * 32,
    )
    part = Part(method=make_method(METHODS[name].Settings(name=name)), context=context)
    return Plan([part], Images(Digests(rows), labels), VARIANTS)


def _print_requests(plan: Plan) -> None:
    numbers = np.linspace(0, len(plan) - 1, min(TIMED, len(plan)), dtype=np.int64).tolist()
    tracemalloc.start()
    listed = [plan[number] for number in numbers]
    keys = [request.key for request in listed]
    kib = tracemalloc.get_traced_memory()[0] / len(listed) / 1024
    tracemalloc.stop()
    fields = [request.to_fields() for request in listed]
    fresh = _fresh(plan)
    made, request_s = _timed(lambda: [fresh[number] for number in numbers])
    _, key_s = _timed(lambda: [request.key for request in made])
    _, number_s = _timed(lambda: [plan.number(f["source_digest"], f["variant"]) for f in fields])
    fresh = _fresh(plan)
    found, sure_s = _timed(lambda: [*map(fresh.number_of, keys, fields)])
    assert found == numbers, "a number must be found again"
    us = [seconds / len(numbers) * 1e6 for seconds in (request_s, key_s, number_s, sure_s)]
    sys.stdout.write(
        f"  request n {us[0]:.1f} us, its key {us[1]:.1f} us, number of a record {us[2]:.1f} us, "
        f"confirmed by its key {us[3]:.1f} us\n"
        f"  a list of all: {(us[0] + us[1]) * len(plan) / 1e6:.0f} s and "
        f"{kib * len(plan) / 1024:.0f} MiB, as {len(numbers):,} requests tell\n"
    )


def _fresh(plan: Plan) -> Plan:
    """Return the plan without the requests that it keeps."""
    return Plan(plan.parts, plan.images, plan.variants_per_image)


def _print_permutation() -> None:
    numbers = np.arange(1_000_000)
    _, keyed_s = _timed(lambda: Permutation(len(numbers), "bench").at(numbers))
    _, shuffled_s = _timed(lambda: np.random.default_rng(0).permutation(len(numbers)))
    sys.stdout.write(
        f"a million places of a keyed permutation {keyed_s * 1e3:.0f} ms, NumPy's shuffle "
        f"{shuffled_s * 1e3:.0f} ms\n"
    )


def _print_pass(store: Store, plan: Plan, records: int) -> None:
    new = max(1, records // 1000)
    _fill(store, plan, range(records))
    held, first_s = _timed(lambda: held_of(store, plan))
    assert len(held.rows) == records
    _, again_s = _timed(lambda: held_of(store, plan))
    _fill(store, plan, range(records, records + new))
    _, more_s = _timed(lambda: held_of(store, plan))
    keys = [plan[number].key for number in range(records)]
    _, listed_s = _timed(lambda: store.contains(keys))
    sys.stdout.write(
        f"images of the plan in a cache of {records:,}: {first_s:.2f} s at first, {again_s:.3f} s "
        f"again, {more_s:.3f} s with {new:,} new; look-up of {records:,} listed keys "
        f"{listed_s:.2f} s\n"
    )


def _fill(store: Store, plan: Plan, numbers: range) -> None:
    grey = np.zeros((1, 1, 3), np.uint8)
    with terminal_progress("filling the cache") as report:
        for first in range(numbers.start, numbers.stop, COMMIT):
            part = range(first, min(first + COMMIT, numbers.stop))
            store.put_many([Entry(plan[number].to_fields(), grey) for number in part])
            report(first - numbers.start, len(numbers))


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    started = clock_s()
    result = work()
    return result, clock_s() - started


if __name__ == "__main__":
    main()
