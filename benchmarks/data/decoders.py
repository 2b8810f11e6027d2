"""Compare the loader's decoder of image files with Pillow, torchvision and OpenCV.

    python -m benchmarks.data.decoders [--turns 15] [--height 375] [--width 500]

All decode the same files, held in memory, on one thread and in turns. The last column says how
far a decoder's pixels are from Pillow's.
"""

import argparse
import io
from collections.abc import Callable, Mapping, Sequence

import cv2
import numpy as np
import PIL.Image
import torch
from torchvision.io import ImageReadMode, decode_image

from benchmarks._photos import photo_squares
from benchmarks._timing import faster, in_turns, rate
from cache.codecs import Pixels
from online_aug.data import images as ours

Decode = Callable[[bytes], Pixels]
FORMATS = {"JPEG, quality 90": ("JPEG", {"quality": 90}), "PNG": ("PNG", {})}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Which decoder of image files is fastest.")
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--height", type=int, default=375, help="of the images, px")
    parser.add_argument("--width", type=int, default=500, help="of the images, px")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    print("| files | decoder | images/s | over the loader's | largest difference |")
    print("|---|---|---|---|---|")
    for name, (format_name, options) in FORMATS.items():
        files = [
            _encoded(square, (chosen.width, chosen.height), format_name, options)
            for square in photo_squares(512)
        ]
        for row in rows_of(files, chosen.turns):
            print(f"| {name} | {row} |", flush=True)


def rows_of(files: Sequence[bytes], turns: int) -> list[str]:
    """Print a line for each decoder."""
    sides = {name: _all(decode, files) for name, decode in DECODERS.items()}
    seconds = in_turns(sides, turns)
    return [
        f"{name} | {rate(seconds, name, len(files)):,.0f} | {faster(seconds, name, LOADER):.2f} | "
        f"{_difference(decode, files)}"
        for name, decode in DECODERS.items()
    ]


def by_loader(data: bytes) -> Pixels:
    """Decode as training images are decoded: size bounded, upright, any mode to RGB."""
    return ours.decode_image(data, "a file")


def by_pillow(data: bytes) -> Pixels:
    """Decode by Pillow alone."""
    return np.array(PIL.Image.open(io.BytesIO(data)).convert("RGB"))


def by_torchvision(data: bytes) -> Pixels:
    """Decode by torchvision and permute to `h w 3`, without a copy."""
    raw = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    return decode_image(raw, ImageReadMode.RGB).permute(1, 2, 0).numpy()


def by_opencv(data: bytes) -> Pixels:
    """Decode by OpenCV and convert BGR to RGB."""
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    return np.asarray(cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB), np.uint8)


LOADER = "the loader's"
DECODERS: Mapping[str, Decode] = {
    LOADER: by_loader,
    "Pillow alone": by_pillow,
    "torchvision": by_torchvision,
    "OpenCV": by_opencv,
}


def _encoded(
    square: Pixels, size: tuple[int, int], format_name: str, options: Mapping[str, int]
) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.fromarray(square).resize(size).save(buffer, format_name, **options)
    return buffer.getvalue()


def _all(decode: Decode, files: Sequence[bytes]) -> Callable[[int], object]:
    return lambda turn: [decode(data) for data in files]


def _difference(decode: Decode, files: Sequence[bytes]) -> int:
    pairs = ((decode(data).astype(int), by_pillow(data).astype(int)) for data in files)
    return max(int(np.abs(one - other).max()) for one, other in pairs)


if __name__ == "__main__":
    main()
