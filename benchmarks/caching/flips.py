"""Change every byte of a small cache in turn and print what becomes of the cache.

    python -m benchmarks.caching.flips [--stride 1] [--first 0] [--seed 0] [--jobs 2]

Flips bits of one byte of the data file, reads everything, writes more, reads everything again, and
restores the file. Good outcomes are a byte that does not matter, a cache that is refused when it is
opened, and records that are found to be broken. Bad ones are a wrong image, a death, a hang, an
error without words and a loss that `verify` does not find: exit status 1.
"""

import argparse
import multiprocessing
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TypeAlias

import numpy as np
from lmdb.verify import VerifyError, verify

from cache import CacheError, Entry, Owner, Rejection, Store, request_key
from cache.backend import opening
from online_aug.console import progress

HANG_S = 120
PAGE_BYTES = 4096
LATER = 1000
"""First variant of the records written to a cache with a flipped byte."""
BAD = ("wrong image", "killed", "hung", "error without words", "loss that verify does not see")
Flip: TypeAlias = tuple[int, int]
"""The number of a byte and the bits of it to flip."""
_CONTEXT = multiprocessing.get_context("forkserver")


def main(argv: Sequence[str]) -> int:
    """Print how often each outcome was seen and where the bad ones were; 1 if there was one."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.caching.flips", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--stride", type=int, default=1, help="flip every nth byte")
    parser.add_argument("--first", type=int, default=0, help="the first byte to flip")
    parser.add_argument("--seed", type=int, default=0, help="draws the bits that are flipped")
    parser.add_argument("--jobs", type=int, default=1, help="processes that flip at once")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="cache-flips-", dir=_memory()) as folder:
        whole = _small_cache(Path(folder, "whole"))
        masks = np.random.default_rng(arguments.seed).integers(1, 256, len(whole))
        flips = [
            (at, int(masks[at])) for at in range(arguments.first, len(whole), arguments.stride)
        ]
        print(f"{len(flips)} of {len(whole)} bytes, {len(whole) // PAGE_BYTES} pages", flush=True)
        ends = _all_ends(whole, flips, Path(folder), arguments.jobs)
    return _report(ends)


def _report(ends: dict[int, str]) -> int:
    for end, count in Counter(ends.values()).most_common():
        print(f"{count:8d}  {end}")
    bad = {at: end for at, end in ends.items() if end.startswith(BAD)}
    for at, end in bad.items():
        print(f"byte {at} (page {at // PAGE_BYTES}, {at % PAGE_BYTES}): {end}")
    print(f"{len(bad)} bad ends")
    return int(bool(bad))


def _memory() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def _small_cache(path: Path) -> bytes:
    with Store(path, codec="raw") as store:
        for entry in _entries():  # many commits, so that there are free pages
            store.put_many([entry])
        for number in range(3):
            request = {"rejected": number}
            store.reject(request_key(request), request, Rejection("blank"))
        store.claim([request_key({"claimed": number}) for number in range(3)], Owner.current())
    return (path / "data.mdb").read_bytes()


@cache
def _entries(first: int = 0) -> tuple[Entry, ...]:
    rng = np.random.default_rng(first)
    sides = [(6, 8)] * 5 + [(20, 50)]  # in pages of the tree, and in one of its own
    return tuple(
        Entry({"method": "demo", "variant": variant}, rng.integers(0, 256, (*side, 3), np.uint8))
        for variant, side in enumerate(sides, first)
    )


@cache
def _expected(*firsts: int) -> dict[bytes, Entry]:
    return {request_key(entry.request): entry for first in firsts for entry in _entries(first)}


def _all_ends(whole: bytes, flips: list[Flip], folder: Path, jobs: int) -> dict[int, str]:
    ends: dict[int, str] = {}

    def work(job: int) -> None:
        for at, end in _ends(whole, flips[job::jobs], folder / f"flipped{job}"):
            ends[at] = end
            bar.advance(1)

    with progress("flipping", len(flips)) as bar, ThreadPoolExecutor(jobs) as threads:
        list(threads.map(work, range(jobs)))
    return dict(sorted(ends.items()))


def _ends(whole: bytes, flips: list[Flip], path: Path) -> Iterator[tuple[int, str]]:
    # One process after another, each until a flip kills it or makes it hang.
    path.mkdir()
    done = 0
    while done < len(flips):
        receiver, sender = _CONTEXT.Pipe(duplex=False)
        process = _CONTEXT.Process(target=_work, args=(whole, flips[done:], path, sender))
        process.start()
        sender.close()
        for end in _received(receiver):
            yield flips[done][0], end
            done += 1
        process.join()
        if process.exitcode:
            is_hung = process.exitcode == -signal.SIGALRM
            yield flips[done][0], "hung" if is_hung else f"killed by {-process.exitcode}"
            done += 1


def _received(receiver: Connection) -> Iterator[str]:
    while True:
        try:
            yield receiver.recv()
        except EOFError:
            return


def _work(whole: bytes, flips: list[Flip], path: Path, sender: Connection) -> None:
    # What a child process does for each opening; one for each byte would take hours.
    opening._examine = _examine
    opening.check_local = lambda path: None  # the list of mounts is as it was for the last byte
    for at, mask in flips:
        broken = bytearray(whole)
        broken[at] ^= mask
        shutil.rmtree(path)
        path.mkdir()
        (path / "data.mdb").write_bytes(broken)
        signal.alarm(HANG_S)
        try:
            end = _end(path)
        except Exception as error:
            end = f"error without words: {type(error).__name__}: {error}"
        signal.alarm(0)
        sender.send(end)


def _examine(path: Path) -> CacheError | None:
    try:
        is_damaged = bool(verify(str(path)))
    except VerifyError:
        is_damaged = True
    return CacheError("damaged") if is_damaged else None


def _end(path: Path) -> str:
    with Store(path, codec="raw", readonly=True) as store:
        try:
            store.open()
        except CacheError:
            return "refused when opened"
        first = _read(store, _expected(0))
    with Store(path, codec="raw") as store:
        refusals = _write(store)
        second = _read(store, _expected(0) if refusals else _expected(0, LATER))
    found = first + second + refusals
    for end in ("wrong image", "record missing", "record found to be broken", "operation refused"):
        if end in found and end == "record missing":
            return "seen by verify" if "verify" in found else "loss that verify does not see"
        if end in found:
            return end
    return "seen by verify" if "verify" in found else "harmless"


def _read(store: Store, expected: dict[bytes, Entry]) -> list[str]:
    found = []
    for key, entry in expected.items():
        try:
            record = store.get(key)
        except CacheError:
            found.append("record found to be broken")
            continue
        if record is None:
            found.append("record missing")
        elif not np.array_equal(record.image, entry.image):
            found.append("wrong image")
    keys = list(expected)
    calls = (
        store.stats,
        store.tail,
        lambda: store.contains(keys),
        lambda: store.status(keys),
        lambda: store.sample(np.random.default_rng(0), 5),
    )
    found += [end for call in calls for end in _attempt(call)]
    try:
        return found if store.verify().is_clean else [*found, "verify"]
    except CacheError:
        return [*found, "verify"]


def _write(store: Store) -> list[str]:
    request = {"rejected": "later"}
    calls = (
        lambda: store.put_many(_entries(LATER)),
        lambda: store.claim([request_key({"claimed": number}) for number in range(6)], _ME),
        lambda: store.reject(request_key(request), request, Rejection("blank")),
        lambda: store.release([request_key({"claimed": 0})], _ME),
    )
    return [end for call in calls for end in _attempt(call)]


def _attempt(call: object) -> list[str]:
    try:
        call()
    except CacheError:
        return ["operation refused"]
    return []


_ME = Owner.current()

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
