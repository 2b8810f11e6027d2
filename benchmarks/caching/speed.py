"""Compare the cache with bare LMDB and other stores, and small caches with large ones.

    python -m benchmarks.caching.speed [--records 10000] [--bytes 20000] [--quick] [--folder FOLDER]

Writes the same encoded photos everywhere, takes the sides in turns and prints ratios with their
rates. WebDataset and MosaicML Streaming take part if they are installed. Choose a folder on the
disk that a cache would be on; it needs records x bytes x 2.3 of space and is left empty.
"""

import argparse
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks._timing import Side, faster, in_turns, rate
from benchmarks.caching import _other_stores, _scaling, _sharing
from benchmarks.caching._records import (
    COMMIT,
    EncodedPhotos,
    encode_photos,
    fill_bare,
    fill_store,
    key_of,
    open_bare,
    store_for,
)
from cache import Store
from cache.codecs import CODECS, DEFAULT_CODEC

READS = 200
SECTIONS = ("get", "put", "scaling", "others", "codecs", "memory", "sharing")


@dataclass(frozen=True)
class Bench:
    """The photos, the number of records and the folder of a measurement."""

    photos: EncodedPhotos
    records: int
    repetitions: int
    folder: Path

    @property
    def store(self) -> Path:
        """The cache that every section reads."""
        return self.folder / "store"

    def draw(self, repetition: int, count: int = READS) -> list[int]:
        """Return random record numbers, the same for every side of a repetition."""
        rng = np.random.default_rng([7, repetition + 1])
        return [int(number) for number in rng.integers(0, self.records, count)]

    def keys(self, repetition: int, count: int = READS) -> list[bytes]:
        """Return the keys of those records."""
        return [key_of(number) for number in self.draw(repetition, count)]


def main() -> None:
    """Measure the chosen sections and print a table for each."""
    chosen = _arguments()
    photos = encode_photos(chosen.codec, chosen.bytes)
    with tempfile.TemporaryDirectory(dir=chosen.folder, prefix="cache-speed-") as folder:
        repetitions = 5 if chosen.quick else 41
        bench = Bench(photos, chosen.records, repetitions, Path(folder))
        print(
            f"{bench.records:,} records of {photos.mean_bytes:,.0f} bytes: photos of "
            f"{photos.side} px as {photos.codec.name}; {len(os.sched_getaffinity(0))} cores\n"
        )
        fill_store(photos, bench.store, bench.records)
        for name in chosen.sections:
            _SECTIONS[name](bench)


def compare_get(bench: Bench) -> None:
    """Compare `get` with a bare `get` and the same decoder."""
    path = bench.folder / "bare"
    fill_bare(bench.photos, path, bench.records)
    keys = {repetition: bench.keys(repetition) for repetition in range(-1, bench.repetitions)}
    decode = bench.photos.decode
    with Store(bench.store, readonly=True) as store, open_bare(path) as environment:

        def bare(use: Callable[[bytes], object], key: bytes) -> None:
            with environment.begin() as txn:
                use(txn.get(key))

        def side(read: Callable[[bytes], object]) -> Side:
            def read_all(repetition: int) -> None:
                for key in keys[repetition]:
                    read(key)

            return read_all

        sides = {"get": side(store.get), "bare": side(partial(bare, decode))}
        undecoded = {"inspect": side(store.inspect), "bare": side(partial(bare, len))}
        seconds, plain = (in_turns(both, bench.repetitions) for both in (sides, undecoded))
    shutil.rmtree(path)
    _table("random reads", "of bare LMDB")
    _row("`get`, and bare get + decoder", seconds, "get", "bare", READS)
    _row("checked but not decoded", plain, "inspect", "bare", READS)


def compare_put(bench: Bench) -> None:
    """Compare `put_many` with bare writes of as many bytes in a commit."""
    _table(f"writes, {COMMIT} in a commit", "of bare LMDB")
    for name, encodes in (("encoding on both sides", True), ("already encoded", False)):
        _row(name, _writes(bench, encodes), "put", "bare", COMMIT)


def _writes(bench: Bench, encodes: bool) -> dict[str, list[float]]:
    entries = {n: bench.photos.entries(*_batch(n)) for n in range(-1, bench.repetitions)}
    ours, theirs = bench.folder / "ours", bench.folder / "theirs"
    with store_for(bench.photos, ours, encodes=encodes) as store, open_bare(theirs) as bare:

        def put_bare(repetition: int) -> None:
            values = [_encoded(bench.photos, n, encodes) for n in range(*_batch(repetition))]
            with bare.begin(write=True) as txn:
                for value in values:
                    txn.put(os.urandom(32), value)

        sides = {"put": lambda n: store.put_many(entries[n]), "bare": put_bare}
        seconds = in_turns(sides, bench.repetitions)
    shutil.rmtree(ours)
    shutil.rmtree(theirs)
    return seconds


def _batch(repetition: int) -> tuple[int, int]:
    return (repetition + 1) * COMMIT, (repetition + 2) * COMMIT


def _encoded(photos: EncodedPhotos, number: int, encodes: bool) -> bytes:
    if not encodes:
        return photos.data(number)
    return photos.codec.encode(photos.images[number % len(photos.images)])


def _table(what: str, ratio: str) -> None:
    print(f"\n| {what} | {ratio} | cache | other |\n|---|---|---|---|", flush=True)


def _row(what: str, seconds: dict[str, list[float]], ours: str, other: str, items: int) -> None:
    mine, theirs = (rate(seconds, name, items) for name in (ours, other))
    print(f"| {what} | {faster(seconds, ours, other):.2f} | {mine:,.0f}/s | {theirs:,.0f}/s |")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The cache against bare LMDB and other stores.")
    parser.add_argument("--records", type=int, default=_scaling.BASE_RECORDS)
    parser.add_argument("--bytes", type=int, default=20_000, help="mean size of an image")
    parser.add_argument("--codec", choices=CODECS, default=DEFAULT_CODEC)
    parser.add_argument("--quick", action="store_true", help="few repetitions")
    parser.add_argument("--folder", type=Path, help="where to write; default the temporary folder")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=SECTIONS)
    return parser.parse_args()


_SECTIONS: dict[str, Callable[[Bench], None]] = {
    "get": compare_get,
    "put": compare_put,
    "scaling": _scaling.compare,
    "others": _other_stores.compare,
    "codecs": _other_stores.compare_codecs,
    "memory": lambda bench: _sharing.print_memory(bench.store, bench.records),
    "sharing": lambda bench: _sharing.print_sharing(bench.photos, bench.store),
}


if __name__ == "__main__":
    main()
