"""Measure the memory of a reading process, and how long writers make readers wait."""

import multiprocessing
import time
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from benchmarks._timing import clock_s
from benchmarks.caching._records import COMMIT, EncodedPhotos, encode_photos, key_of, store_for
from cache import Store

READERS, WRITERS = 8, 2
SECONDS = 10.0
READS = 5000
_SPAWN = multiprocessing.get_context("spawn")


def print_memory(path: Path, records: int) -> None:
    """Print the private memory of a reading process before and after it has read."""
    before, after = _in_child(_read_and_weigh, path, records)
    print(f"\n| memory of a reader, MiB | |\n|---|---|\n| imports alone | {before:.0f} |")
    print(f"| after {READS:,} random reads of {records:,} | {after:.0f} |", flush=True)


def print_sharing(photos: EncodedPhotos, path: Path) -> None:
    """Print the longest wait of a reader, with writers at work and without.

    A wait is the time of a read without computing and without waiting for a core: waiting for
    another process or for the disk.
    """
    print(f"\n| {READERS} readers for {SECONDS:g} s | reads | written | longest wait, ms | |")
    print("|---|---|---|---|---|")
    for writers in (0, WRITERS):
        reads, waits, walls, written = _together(photos, path, writers)
        print(
            f"| and {writers} writers | {reads:,} | {written:,} | {1000 * waits:.1f} "
            f"| {1000 * walls:.1f} with the wait for a core |",
            flush=True,
        )


def _together(photos: EncodedPhotos, path: Path, writers: int) -> tuple[int, float, float, int]:
    with Store(path, readonly=True) as store:
        records = len(store)
    arguments = (photos.codec.name, int(photos.mean_bytes))
    gate = _SPAWN.Barrier(READERS + writers)
    jobs = [_start(_read, path, records, gate) for _ in range(READERS)]
    jobs += [_start(_write, path, records * (n + 2), gate, *arguments) for n in range(writers)]
    results = [receiver.recv() for receiver, _ in jobs]
    for _, process in jobs:
        process.join()
        if process.exitcode:
            raise SystemExit("error: a reader or writer failed")
    found = results[:READERS]
    written = sum(results[READERS:])
    return sum(r[0] for r in found), max(r[1] for r in found), max(r[2] for r in found), written


def _read(sender: Connection, path: Path, records: int, gate) -> None:
    rng = np.random.default_rng()
    reads, longest, longest_wall = 0, 0.0, 0.0
    with Store(path, readonly=True).open() as store:
        gate.wait()
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            key = key_of(int(rng.integers(records)))
            started = time.perf_counter(), clock_s() - time.thread_time()
            record = store.get(key)
            waited = clock_s() - time.thread_time() - started[1]
            wall = time.perf_counter() - started[0]
            if record is None:
                raise SystemExit("error: a record was not found")
            reads, longest = reads + 1, max(longest, waited)
            longest_wall = max(longest_wall, wall)
    sender.send((reads, longest, longest_wall))


def _write(sender: Connection, path: Path, start: int, gate, codec: str, size: int) -> None:
    photos = encode_photos(codec, size)
    written = 0
    with store_for(photos, path).open() as store:
        gate.wait()
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            first = start + written
            written += store.put_many(photos.entries(first, first + COMMIT))
    sender.send(written)


def _read_and_weigh(sender: Connection, path: Path, records: int) -> None:
    before = _own_mib()
    rng = np.random.default_rng(0)
    with Store(path, readonly=True) as store:
        for number in rng.integers(0, records, READS):
            store.get(key_of(int(number)))
        store.sample(rng, 64)
        store.tail(records - 64)
        sender.send((before, _own_mib()))


def _own_mib() -> float:
    """Return the resident memory that is not backed by a file."""
    lines = Path("/proc/self/status").read_text().splitlines()
    kib = [int(line.split()[1]) for line in lines if line.startswith(("RssAnon", "RssShmem"))]
    return sum(kib) / 1024


def _start(target, *arguments):
    receiver, sender = _SPAWN.Pipe(duplex=False)
    process = _SPAWN.Process(target=target, args=(sender, *arguments))
    process.start()
    sender.close()
    return receiver, process


def _in_child(target, *arguments):
    receiver, process = _start(target, *arguments)
    result = receiver.recv()
    process.join()
    return result
