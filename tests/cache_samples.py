"""Keys and large records, processes that die, and bytes that change, for tests of the cache."""

import multiprocessing

import lmdb
import numpy as np

from cache import Entry, Store, request_key

FORK = multiprocessing.get_context("fork")


def keys_of(entries):
    """Return the key of each entry."""
    return [request_key(entry.request) for entry in entries]


def large(count, side=60):
    """Return entries that are too large to share a page of the file."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    return [Entry({"large": number}, image) for number, image in enumerate(images)]


def exit_status(function):
    """Run `function` in a forked process and return its exit status."""
    process = FORK.Process(target=function)
    process.start()
    process.join()
    return process.exitcode


def in_child(function):
    """Return what `function` returns in a forked process, or raise its error here."""
    receiver, sender = FORK.Pipe(duplex=False)

    def run():
        try:
            sender.send(function())
        except Exception as error:
            sender.send(error)

    process = FORK.Process(target=run)
    process.start()
    sender.close()
    result = receiver.recv()
    process.join()
    if isinstance(result, Exception):
        raise result
    return result


def read_all(path):
    """Return every record of a cache."""
    with Store(path, readonly=True) as store:
        return [store.get(key) for _, key in store.tail()]


def overwrite(path, table, key, change):
    """Change a value behind the cache's back, as a failing disk does.

    Args:
        path: Directory of the cache, which must not be open.
        table: Name of the table as bytes.
        key: Key in that table; the value is empty if it is missing.
        change: Maps the old value to the new one.
    """
    with lmdb.open(str(path), map_size=2**30, max_dbs=16, lib_version=0) as environment:
        handle = environment.open_db(table, create=False)
        with environment.begin(write=True) as txn:
            txn.put(key, change(txn.get(key, b"", db=handle)), db=handle)
