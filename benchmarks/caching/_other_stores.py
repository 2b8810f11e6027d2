"""Read image files, WebDataset shards and MosaicML Streaming beside the cache."""

import io
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import PIL.Image

from benchmarks._timing import Side, faster, in_turns, rate
from benchmarks.caching._records import CLASSES, file_of, fill_folders, fill_store, key_of
from cache import Store
from cache.codecs import CODECS, Pixels

if TYPE_CHECKING:
    from benchmarks.caching.speed import Bench

SHARD_BYTES = 2**26
READS = 200
FEWER = 10_000
_FILES: dict[str, dict[str, int]] = {"PNG": {}, "JPEG": {"quality": 95}}
"""Formats of image files and Pillow's options, as scripts that generate images use them."""


def compare(bench: "Bench") -> None:
    """Print a row for each other store and order of reading; one at a time is on the disk."""
    print("\n| images a second, decoded | cache over it | cache | other |\n|---|---|---|---|")
    for package, name, prepare in (
        (None, "the same files in class folders, PIL", _folders),
        (None, "PNG files in class folders, PIL", _png_folders),
        ("webdataset", "WebDataset tar shards", _webdataset),
        ("streaming", "MosaicML Streaming", _streaming),
    ):
        if package and not find_spec(package):
            print(f"| {name} | not installed: `pip install {_PIP[package]}` | | |", flush=True)
            continue
        path = bench.folder / "other"
        for order, side in prepare(bench, path).items():
            _print_row(bench, name, order, side)
        shutil.rmtree(path)


def compare_codecs(bench: "Bench") -> None:
    """Print how fast a cache of each codec is read, against image files opened by Pillow."""
    records = min(bench.records, FEWER)
    print(f"\n| {records:,} images, random | KiB | cache | {' | '.join(_FILES)} |")
    print(f"|---|---|---|{'---|' * len(_FILES)}", flush=True)
    files = {kind: bench.folder / f"files-{kind}" for kind in _FILES}
    for kind, path in files.items():
        encoded = [_as_file(image, kind) for image in bench.photos.images]
        fill_folders(replace(bench.photos, encoded=encoded), path, records)
    for codec in CODECS.values():
        encoded = [codec.encode(image) for image in bench.photos.images]
        photos = replace(bench.photos, encoded=encoded, codec=codec)
        path = bench.folder / "codec"
        fill_store(photos, path, records)
        _print_codec(replace(bench, photos=photos, records=records), path, files)
        shutil.rmtree(path)
    for path in files.values():
        shutil.rmtree(path)


def _print_codec(bench: "Bench", path: Path, files: Mapping[str, Path]) -> None:
    with Store(path, readonly=True) as store:
        sides: dict[str, Side] = {
            "cache": lambda n: [store.get(key_of(number)) for number in bench.draw(n, READS)]
        }
        for kind, folder in files.items():
            sides[kind] = lambda n, folder=folder: _read_files(folder, bench.draw(n, READS))
        seconds = in_turns(sides, bench.repetitions)
    ratios = " | ".join(f"{faster(seconds, 'cache', kind):.2f}" for kind in files)
    size, mine = bench.photos.mean_bytes / 2**10, rate(seconds, "cache", READS)
    print(f"| `{bench.photos.codec.name}` | {size:.1f} | {mine:,.0f}/s | {ratios} |", flush=True)


def _read_files(path: Path, numbers: list[int]) -> None:
    for number in numbers:
        with PIL.Image.open(file_of(path, number)) as picture:
            np.asarray(picture.convert("RGB"))


def _print_row(bench: "Bench", name: str, order: str, side: Side) -> None:
    with Store(bench.store, readonly=True) as store:
        walk = _Endless(lambda: (store.get(key) for _, key in _log(store)))

        def ours(repetition: int) -> None:
            if order == "sequential":
                walk.take(READS)
                return
            for number in bench.draw(repetition, READS):
                store.get(key_of(number))

        seconds = in_turns({"cache": ours, "other": side}, bench.repetitions)
    ratio = faster(seconds, "cache", "other")
    mine, theirs = (rate(seconds, one, READS) for one in ("cache", "other"))
    print(f"| {name}, {order} | {ratio:.2f} | {mine:,.0f}/s | {theirs:,.0f}/s |", flush=True)


def _log(store: Store) -> Iterator[tuple[int, bytes]]:
    position = 0
    while part := store.tail(position, 1000):
        yield from part
        position = part[-1][0]


def _folders(bench: "Bench", path: Path) -> dict[str, Side]:
    fill_folders(bench.photos, path, bench.records)

    read = partial(_read_files, path)

    def in_order(repetition: int) -> None:
        start = (repetition + 1) * READS % bench.records
        label = start % CLASSES
        files = range(label, bench.records, CLASSES)
        read([files[(start + n) % len(files)] for n in range(READS)])

    return {"random": lambda n: read(bench.draw(n, READS)), "sequential": in_order}


def _png_folders(bench: "Bench", path: Path) -> dict[str, Side]:
    """Prepare PNG files, which scripts that generate images commonly write."""
    files = [_as_file(image, "PNG") for image in bench.photos.images]
    return _folders(replace(bench, photos=replace(bench.photos, encoded=files)), path)


def _as_file(image: Pixels, kind: str) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.fromarray(image).save(buffer, kind, **_FILES[kind])
    return buffer.getvalue()


def _webdataset(bench: "Bench", path: Path) -> dict[str, Side]:
    import webdataset

    path.mkdir()
    pattern = str(path / "%06d.tar")
    with webdataset.ShardWriter(pattern, maxsize=SHARD_BYTES, verbose=0) as writer:
        for number in range(bench.records):
            data = bench.photos.data(number)
            writer.write({"__key__": f"{number:07}", "img": data, "cls": number % CLASSES})
    shards = sorted(map(str, path.glob("*.tar")))

    def pixels(sample: dict[str, bytes]) -> Pixels:
        return _decoded(sample["img"])

    def reader(**options: object) -> Iterator[Pixels]:
        return iter(webdataset.WebDataset(shards, **options).map(pixels))

    walk = _Endless(lambda: reader(shardshuffle=False))
    shuffled = _Endless(
        lambda: iter(webdataset.WebDataset(shards, shardshuffle=100).shuffle(1000).map(pixels))
    )
    return {
        "sequential": lambda _: walk.take(READS),
        "shuffled (its kind of random)": lambda _: shuffled.take(READS),
    }


def _streaming(bench: "Bench", path: Path) -> dict[str, Side]:
    from streaming import MDSWriter, StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    clean_stale_shared_memory()
    columns = {"image": "bytes", "label": "int"}
    with MDSWriter(out=str(path), columns=columns, size_limit=SHARD_BYTES) as writer:
        for number in range(bench.records):
            writer.write({"image": bench.photos.data(number), "label": number % CLASSES})
    ordered = StreamingDataset(local=str(path), shuffle=False, batch_size=1)

    def read(numbers: list[int]) -> None:
        for number in numbers:
            _decoded(ordered[number]["image"])

    walk = _Endless(lambda: (_decoded(sample["image"]) for sample in ordered))
    return {
        "sequential": lambda _: walk.take(READS),
        "random": lambda n: read(bench.draw(n, READS)),
    }


def _decoded(data: bytes) -> Pixels:
    with PIL.Image.open(io.BytesIO(data)) as picture:
        return np.asarray(picture.convert("RGB"))


class _Endless:
    """Goes on where the last call stopped, and starts again at the end."""

    def __init__(self, start: Callable[[], Iterator[object]]) -> None:
        self._start = start
        self._running: Iterator[object] = iter(())

    def take(self, count: int) -> None:
        """Take the next `count` items."""
        left = count
        while left := left - sum(1 for _ in islice(self._running, left)):
            self._running = self._start()


_PIP = {"webdataset": "webdataset", "streaming": "mosaicml-streaming"}
