"""Measure how fast a generation process skips requests that it need not make.

python -m benchmarks.generation.queue_overhead [--requests 20000] [--rounds 3]

A third each of a plan is stored, rejected and claimed by another process. `RequestQueue` works it
off in each of its orders, and `Store.status` alone looks it up, in turns. The last row includes
computing the keys, which a process does once; the other rows find them computed.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks._timing import faster, in_turns
from cache import Entry, Owner, Rejection, Store
from online_aug.planning import ListedRequests
from online_aug.producer.request_order import Stripe
from online_aug.producer.request_queue import LOOKUP_BATCH, RequestQueue
from online_aug.request import GenerationRequest

CLASSES = 200
BARE = "Store.status alone"


def digest_of(image: int) -> str:
    """Return the digest of a source image."""
    return f"{image:032x}"[::-1]  # the first digits decide who makes an image


ORDERS = {
    "the plan's": (None, None),
    "own part first": (Stripe(number=1, count=3), None),
    "classes by weight": (None, [1 / (label + 1) for label in range(CLASSES)]),
    "images by weight": (None, {digest_of(number): 1 / number for number in range(1, 1000)}),
}


def main() -> None:
    """Print requests a second of each side, and the ratio to the bare look-up."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    plan = [request_of(number) for number in range(options.requests)]
    with tempfile.TemporaryDirectory() as folder, Store(Path(folder) / "cache") as store:
        fill(store, plan)
        sides = sides_of(store, plan)
        seconds = in_turns(sides, options.rounds)
    sys.stdout.write(f"{'order':32} {'requests/s':>12} {'of the bare look-up':>20}\n")
    for name in sides:
        rate, share = len(plan) / median(seconds[name]), faster(seconds, name, BARE)
        sys.stdout.write(f"{name:32} {rate:12,.0f} {share:20.2f}\n")


def request_of(number: int) -> GenerationRequest:
    """Return a request like those of training."""
    return GenerationRequest(
        method="diff_mix",
        method_version=1,
        source_digest=digest_of(number // 5),
        source_label=number % CLASSES,
        target_label=(7 * number + 3) % CLASSES,
        prompt=f"a photo of a <class_{(7 * number + 3) % CLASSES}> bird",
        strength=0.7,
        guidance_scale=7.5,
        num_inference_steps=25,
        scheduler="dpmsolver++",
        resolution=512,
        variant=number % 5,
        noise_seed=number,
        generator_fingerprint="0" * 32,
    )


def fill(store: Store, plan: Sequence[GenerationRequest]) -> None:
    """Store, reject or claim each request of the plan."""
    pixels = np.zeros((8, 8, 3), np.uint8)
    store.put_many([Entry(request.to_fields(), pixels) for request in plan[::3]])
    for request in plan[1::3]:
        store.reject(request.key, request.to_fields(), Rejection("white"))
    other = replace(Owner.current(), pid=1, started=0)
    store.claim([request.key for request in plan[2::3]], other, 86_400)


def sides_of(store: Store, plan: Sequence[GenerationRequest]) -> dict[str, Callable[[int], object]]:
    """Return what is compared, by name."""

    def look_up(_: int) -> None:
        keys = [request.key for request in plan]
        for first in range(0, len(keys), LOOKUP_BATCH):
            store.status(keys[first : first + LOOKUP_BATCH])

    def work_off(some: Sequence[GenerationRequest], order: str) -> None:
        queue = RequestQueue(ListedRequests(some), store, Owner.current(), *ORDERS[order])
        if queue.take(1):
            raise AssertionError("there must be nothing left to make")

    sides: dict[str, Callable[[int], object]] = {BARE: look_up}
    for order in ORDERS:
        sides[order] = lambda _, order=order: work_off(plan, order)  # type: ignore[misc]
    sides["the plan's, keys not computed"] = lambda _: work_off(
        [replace(request) for request in plan], "the plan's"
    )
    return sides


if __name__ == "__main__":
    main()
