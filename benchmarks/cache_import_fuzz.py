"""Feed random and mutated bytes to what `python -m cache import` reads files with.

    python benchmarks/cache_import_fuzz.py --count 100000

Every input must end in images that verify or in a worded error. Exits with 1 at the first that does
not and writes it to `fuzz_failure.bin`.
"""

import argparse
import io
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import PIL.Image

from cache import CacheError, Entry, Store
from cache.exchange import exporting, importing
from cache.exchange.folder_formats import Source
from cache.exchange.image_files import Description, from_file
from cache.exchange.merging import walk
from cache.exchange.rows import ClassNames

SIDE_PX = 12


def main() -> int:
    """Run as many inputs as asked for, shared among the readers, and print what became of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        for name, (seeds, read) in readers(Path(folder)).items():
            count = options.count // 3
            outcomes = fuzz(seeds, read, count, np.random.default_rng([options.seed, count]))
            print(f"{name}: {count} inputs, " + ", ".join(f"{n} {o}" for o, n in outcomes.items()))
    print(f"{time.monotonic() - started:.0f} s")
    return 0


def readers(folder: Path) -> dict[str, tuple[list[bytes], Callable[[bytes], int]]]:
    """For image files, tables and shards: whole examples, and what reads one and counts images."""
    exported = {name: _exported(folder, name) for name in ("folder", "webdataset")}
    table = (exported["folder"] / "metadata.csv").read_bytes()
    shard = next(exported["webdataset"].glob("*.tar")).read_bytes()
    root = exported["folder"]
    return {
        "images": (_image_files(), _read_image),
        "tables": ([table], lambda content: _import(root, root / "metadata.csv", content)),
        "shards": ([shard], lambda content: _import(folder / "x.tar", folder / "x.tar", content)),
    }


def fuzz(
    seeds: list[bytes], read: Callable[[bytes], int], count: int, rng: np.random.Generator
) -> Counter[str]:
    """What became of `count` inputs; an exception that is no CacheError gets out."""
    outcomes: Counter[str] = Counter()
    for content in _inputs(seeds, count, rng):
        try:
            outcomes["read" if read(content) else "without an image"] += 1
        except CacheError:
            outcomes["refused"] += 1
        except BaseException:
            Path("fuzz_failure.bin").write_bytes(content)
            raise
    return outcomes


def _inputs(seeds: list[bytes], count: int, rng: np.random.Generator) -> Iterator[bytes]:
    for _ in range(count):
        whole = seeds[rng.integers(len(seeds))]
        if rng.random() < 0.1:
            yield rng.bytes(rng.integers(0, 2000))
        else:
            yield _mutated(whole, rng)


def _mutated(whole: bytes, rng: np.random.Generator) -> bytes:
    data = bytearray(whole)
    for _ in range(rng.integers(1, 6)):
        place = int(rng.integers(len(data) + 1))
        match rng.integers(5):
            case 0 if place < len(data):
                data[place] ^= 1 << int(rng.integers(8))
            case 1 if place < len(data):
                data[place] = int(rng.choice([0, 1, 0x7F, 0x80, 0xFF, 0x22, 0x2C]))
            case 2:
                del data[place : place + int(rng.integers(1, 64))]
            case 3:
                data[place:place] = rng.bytes(rng.integers(1, 64))
            case 4 if rng.random() < 0.3:
                del data[place:]
    return bytes(data)


def _image_files() -> list[bytes]:
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE_PX, SIDE_PX, 3), np.uint8)
    picture = PIL.Image.fromarray(pixels)
    files = []
    for mode, format, options in (
        ("RGB", "PNG", {}),
        ("P", "PNG", {}),
        ("RGBA", "PNG", {}),
        ("RGB", "JPEG", {}),
        ("L", "JPEG", {"progressive": True}),
        ("RGB", "WEBP", {"lossless": True}),
        ("RGB", "WEBP", {}),
        ("RGBA", "WEBP", {"save_all": True, "append_images": [picture]}),
    ):
        file = io.BytesIO()
        picture.convert(mode).save(file, format, **options)
        files.append(file.getvalue())
    return files


def _exported(folder: Path, format: str) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (3, SIDE_PX, SIDE_PX, 3), np.uint8)
    with Store(folder / f"{format}.cache") as store:
        store.put_many([Entry({"method": "m", "n": n}, image) for n, image in enumerate(pixels)])
        exporting.export(walk(store), folder / format, format, ClassNames(), force=False)
    return folder / format


def _read_image(content: bytes) -> int:
    record = from_file(content, Description(request={}, created=0.0))
    _ = record.image
    return 1


def _import(root: Path, place: Path, content: bytes) -> int:
    place.write_bytes(content)
    _, images = importing.find(Source(root=root))
    count = 0
    for _, load in images:
        try:
            _ = load().image
            count += 1
        except CacheError:
            continue
    return count


if __name__ == "__main__":
    sys.exit(main())
