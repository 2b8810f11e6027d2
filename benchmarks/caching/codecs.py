"""Measure bytes, speed and loss of each codec of the cache, as in `docs/RESULTS.md`.

    python -m benchmarks.caching.codecs [--quick]

Photos at 64, 256 and 512 px and the embedded birds at 64 px; images a second of one core's time,
medians of interleaved repetitions.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from statistics import fmean, median

import numpy as np

from benchmarks._photos import ENLARGED, bird_squares, photo_squares
from cache.codecs import CODECS, Codec, Pixels

REPETITIONS = 7
SIDES = (64, 256, 512)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description="Measure what each codec of the cache costs.")
    parser.add_argument("--quick", action="store_true", help="one repetition")
    repetitions = 1 if parser.parse_args().quick else REPETITIONS
    contents = {f"photos, {side} px": photo_squares(side) for side in SIDES}
    contents["drawn birds, 64 px"] = bird_squares(15)
    print("| images | codec | KiB | encode/s | decode/s | PSNR, dB |\n|---|---|---|---|---|---|")
    for name, images in contents.items():
        for row in rows_of(images, repetitions):
            print(f"| {name} | {row} |")
    print(f"\n15 images a row; {ENLARGED}.")


def rows_of(images: Sequence[Pixels], repetitions: int) -> list[str]:
    """Return a row for each codec."""
    encoded = {name: [codec.encode(image) for image in images] for name, codec in CODECS.items()}
    seconds: dict[tuple[str, str], list[float]] = {}
    for _ in range(repetitions):
        for name, codec in CODECS.items():
            took = timed(codec.encode, [(image,) for image in images])
            seconds.setdefault((name, "encode"), []).append(took)
            sizes = [image.shape[:2] for image in images]
            offered = [(data, *size) for data, size in zip(encoded[name], sizes, strict=True)]
            seconds.setdefault((name, "decode"), []).append(timed(codec.decode, offered))
    return [
        f"`{name}` | {fmean(map(len, encoded[name])) / 1024:.1f} "
        f"| {1 / median(seconds[name, 'encode']):,.0f} "
        f"| {1 / median(seconds[name, 'decode']):,.0f} | {loss(codec, images, encoded[name])}"
        for name, codec in CODECS.items()
    ]


def timed(call: Callable[..., object], arguments: Sequence[tuple]) -> float:
    """Return the processor time of a call in s, measured over at least 0.1 s."""
    calls, started = 0, time.process_time()
    while time.process_time() - started < 0.1:
        for some in arguments:
            call(*some)
        calls += len(arguments)
    return (time.process_time() - started) / calls


def loss(codec: Codec, images: Sequence[Pixels], encoded: Sequence[bytes]) -> str:
    """Return the mean peak signal-to-noise ratio in dB, `none` if the codec is lossless."""
    if codec.is_lossless:
        return "none"
    pairs = zip(images, encoded, strict=True)
    errors = [codec.decode(data, *image.shape[:2]) - image.astype(float) for image, data in pairs]
    return f"{fmean(10 * np.log10(255**2 / np.mean(error**2)) for error in errors):.1f}"


if __name__ == "__main__":
    main()
