"""What the tests of faults share: large records, processes that die, a cache read to its end."""

import multiprocessing

import numpy as np

from cache import Entry, Store

FORK = multiprocessing.get_context("fork")


def large(count, side=60):
    """Entries that need pages of their own."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    return [Entry({"large": number}, image) for number, image in enumerate(images)]


def exit_status(function):
    """How a forked process ends that runs `function`."""
    process = FORK.Process(target=function)
    process.start()
    process.join()
    return process.exitcode


def read_all(path):
    with Store(path, readonly=True) as store:
        return [store.get(key) for _, key in store.tail()]
