"""Feed random and mutated bytes to every decoder of a cache or of an import.

    python -m benchmarks.caching.fuzz [stored|imported] [--count 100000] [--seed 0]

`stored`: each string goes to the decoders of records (with every codec), fields, claims, log rows
and saliency maps. A mutated record is also given a right checksum again, so that what lies behind
it is reached. Anything but `CorruptRecordError` or what was encoded is a bug: exit status 1.

`imported`: image files, tables and shards go to what `python -m cache import` reads them with.
Every one must end in images that decode or in a `CacheError`. The first that does not is written
to `fuzz_failure.bin`.
"""

import argparse
import io
import struct
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from zlib import crc32

import numpy as np
import PIL.Image

from cache import CacheError, CorruptRecordError, Entry, Store, decode_fields, request_key
from cache.backend.claims import Claim, Owner
from cache.backend.index import Row
from cache.backend.saliency import check
from cache.codecs import CODECS
from cache.exchange import exporting, importing
from cache.exchange.folder_formats import ImportFolder
from cache.exchange.image_files import Description, from_file
from cache.exchange.metadata import ClassNames
from cache.exchange.records import walk
from cache.record import BODY, HEADER, Draft, checksum, parse, read_summary

REQUEST = {"method": "fuzz", "strength": 0.5, "variant": -3, "prompt": "ein Vögelchen", "n": None}
KEY = request_key(REQUEST)
IMAGE = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
MAX_CHANGES = 6
SIDE_PX = 12


def main(arguments: Sequence[str] | None = None) -> int:
    """Print how often each decoder or reader refused and accepted; 1 if one did anything else."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.caching.fuzz",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", nargs="?", choices=("stored", "imported"), default="stored")
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    run = _fuzz_stored if options.what == "stored" else _fuzz_imported
    return run(options.count, options.seed)


def _fuzz_stored(total: int, seed: int) -> int:
    rng, found = np.random.default_rng(seed), Counter[str]()
    for _ in range(total):
        data = _string(rng)
        for name, decode in DECODERS.items():
            found[f"{name}: {_outcome(decode, data)}"] += 1
    print(f"{total} strings")
    for outcome, count in sorted(found.items()):
        print(f"{count:9d}  {outcome}")
    bugs = sum(count for outcome, count in found.items() if "BUG" in outcome)
    print(f"{bugs} bugs")
    return int(bool(bugs))


def _fuzz_imported(total: int, seed: int) -> int:
    count = total // 3
    with tempfile.TemporaryDirectory() as folder:
        for name, (seeds, read) in readers(Path(folder)).items():
            outcomes = fuzz(seeds, read, count, np.random.default_rng([seed, count]))
            print(f"{name}: {count} inputs, " + ", ".join(f"{n} {o}" for o, n in outcomes.items()))
    return 0


def _string(rng: np.random.Generator) -> bytes:
    if rng.random() < 0.2:
        return rng.bytes(int(rng.integers(0, 300)))
    data = bytearray(SAMPLES[int(rng.integers(len(SAMPLES)))])
    is_record = data.startswith(b"OARC")
    for _ in range(int(rng.integers(1, MAX_CHANGES))):
        _change(data, rng)
    if is_record and rng.random() < 0.7:
        _sign(data)
    return bytes(data)


def _change(data: bytearray, rng: np.random.Generator) -> None:
    at = int(rng.integers(len(data) + 1))
    match int(rng.integers(5)):
        case 0:
            del data[at : at + int(rng.integers(1, 9))]
        case 1:
            data[at:at] = rng.bytes(int(rng.integers(1, 9)))
        case 2 if at + 4 <= len(data):
            struct.pack_into(">I", data, at, int(rng.choice([0, 1, 2**31, 2**32 - 1, 8192])))
        case 3 if at < len(data):
            data[at] ^= 1 << int(rng.integers(8))
        case _:
            data[at : at + 8] = rng.bytes(len(data[at : at + 8]))


def _sign(data: bytearray) -> None:
    if len(data) >= BODY:
        data[HEADER.size : BODY] = checksum(bytes(data[: HEADER.size]), crc32(data[BODY:]))


def _outcome(decode: Callable[[bytes], object], data: bytes) -> str:
    try:
        decode(data)
    except CorruptRecordError:
        return "refused"
    except BaseException as error:
        return f"BUG {type(error).__name__} from {data.hex()}"
    return "accepted"


def _read_record(data: bytes) -> None:
    record = parse(KEY, data)
    if record.request != REQUEST or record.image.dtype != np.uint8 or record.image.ndim != 3:
        raise AssertionError("another record came out")


def _records() -> list[bytes]:
    entry = Entry(REQUEST, IMAGE, {"confidence": 0.5})
    return [Draft(entry, codec, 1.5).seal(7) for codec in CODECS.values()]


DECODERS: dict[str, Callable[[bytes], object]] = {
    "record": _read_record,
    "record summary": lambda data: read_summary(KEY, data),
    "fields": decode_fields,
    "claim": Claim.from_bytes,
    "log row": Row.from_bytes,
    "saliency map": lambda data: check(KEY, data),
    **{
        f"{name} image": lambda data, c=codec: c.decode(data, 9, 7)
        for name, codec in CODECS.items()
    },
}
SAMPLES = [
    *_records(),
    *(codec.encode(IMAGE) for codec in CODECS.values()),
    Claim(Owner.current(), 1e9).to_bytes(),
    Row(KEY, bytes(16), bytes(16), 1.5, 300, 0, 0, 0).to_bytes(),
]


def readers(folder: Path) -> dict[str, tuple[list[bytes], Callable[[bytes], int]]]:
    """Return whole examples of image files, tables and shards, and a reader that counts images."""
    exported = {name: _exported(folder, name) for name in ("folder", "webdataset")}
    table = (exported["folder"] / "metadata.jsonl").read_bytes()
    shard = next(exported["webdataset"].glob("*.tar")).read_bytes()
    root = exported["folder"]
    return {
        "images": (_image_files(), _read_image),
        "tables": ([table], lambda content: _import(root, root / "metadata.jsonl", content)),
        "shards": ([shard], lambda content: _import(folder / "x.tar", folder / "x.tar", content)),
    }


def fuzz(
    seeds: list[bytes], read: Callable[[bytes], int], count: int, rng: np.random.Generator
) -> Counter[str]:
    """Count what became of `count` inputs; an exception other than `CacheError` gets out."""
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
    _, images = importing.find_images(ImportFolder(root=root))
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
