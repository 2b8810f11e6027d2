"""Feeds random and mutated bytes to whatever decodes what a cache holds.

    python benchmarks/cache_fuzz.py [--count 100000] [--seed 0]

Each string goes to the decoders of records (with every codec), fields, claims, log rows and
saliency maps. A mutated record is also given a right checksum again, so that what lies behind it is
reached. Anything but `CorruptRecordError` or what was encoded is a bug: exit status 1.
"""

import argparse
import struct
import sys
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from cache import CorruptRecordError, Entry, decode_fields, request_key
from cache.backend.claims import Claim, Owner
from cache.backend.index import Row
from cache.backend.saliency import check
from cache.codecs import CODECS
from cache.record import CHECKSUMS, HEADER, Draft, glimpse, parse

REQUEST = {"method": "fuzz", "strength": 0.5, "variant": -3, "prompt": "ein Vögelchen", "n": None}
KEY = request_key(REQUEST)
IMAGE = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
MAX_CHANGES = 6


def main(argv: Sequence[str]) -> int:
    """Print how often each decoder refused and accepted; 1 if one did anything else."""
    parser = argparse.ArgumentParser(prog="python benchmarks/cache_fuzz.py", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    rng, found = np.random.default_rng(arguments.seed), Counter[str]()
    for _ in range(arguments.count):
        data = _string(rng)
        for name, decode in DECODERS.items():
            found[f"{name}: {_outcome(decode, data)}"] += 1
    print(f"{arguments.count} strings")
    for outcome, count in sorted(found.items()):
        print(f"{count:9d}  {outcome}")
    bugs = sum(count for outcome, count in found.items() if "BUG" in outcome)
    print(f"{bugs} bugs")
    return int(bool(bugs))


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
    checksum = CHECKSUMS.get(int.from_bytes(data[4:6], "big"))
    if checksum is not None and len(data) >= (body := HEADER.size + checksum.size):
        data[HEADER.size : body] = checksum.of(data[body:], data[: HEADER.size])


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
    "glimpse": lambda data: glimpse(KEY, data),
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

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
