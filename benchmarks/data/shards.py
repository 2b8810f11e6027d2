"""Compare shards read in place with a folder of the same images: random reads, and the start.

    python -m benchmarks.data.shards [--images 2000] [--turns 7] [--height 375] [--width 500]

Photos as JPEG, all different, in a folder of class folders, in tar files, in Parquet files as
`datasets` writes them (images unpacked) and as pyarrow does by default (packed by Snappy), each way
with row groups of a hundred images, and in an Arrow file. The sides take turns, in one process and
on one thread; the files are in the page cache. "Decoded" is what the loader does with an image;
"bytes" is reading alone. The last side reads a row group by pyarrow for every image.
"""

import argparse
import io
import os
import random
import tarfile
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL.Image
import pyarrow as arrow
import pyarrow.ipc
import pyarrow.parquet
import torch

from benchmarks._photos import photo_squares
from benchmarks._timing import faster, in_turns, rate
from cache import Store
from online_aug.data.image_sets import ImageSet, Subset, digests_of
from online_aug.data.images import decode_image, read_bytes
from online_aug.data.settings import DataConfig
from online_aug.data.sources import load_splits

FOLDER, ROW_GROUPS = "folder", "Parquet, a row group by pyarrow for each image"
_CLASSES = 10
_SHARDS = 4
_ROW_GROUP = 100
_LONG_AGO_S = 10**9


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="How fast images are read out of shards.")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--reads", type=int, default=300, help="random reads in a turn")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--height", type=int, default=375, help="of the images, px")
    parser.add_argument("--width", type=int, default=500, help="of the images, px")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        images = _encoded(chosen.images, (chosen.width, chosen.height))
        sources = _written(root, images)
        cache = root / "cache"
        Store(cache).open().close()
        _print_reads(root, sources, cache, chosen)
        _print_starts(sources, cache, chosen)


def _encoded(count: int, size: tuple[int, int]) -> list[bytes]:
    rng = np.random.default_rng(0)
    photos = [np.asarray(PIL.Image.fromarray(p).resize(size)) for p in photo_squares(512)]
    found = []
    for number in range(count):
        pixels = photos[number % len(photos)].copy()
        pixels[:8, :8] = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        PIL.Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
        found.append(buffer.getvalue())
    return found


def _written(root: Path, images: Sequence[bytes]) -> dict[str, Path]:
    """Write the images in every way; return the source of each."""
    labels = [number % _CLASSES for number in range(len(images))]
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = root / "folder" / str(label) / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image)
    for shard in range(_SHARDS):
        _write_tar(root / "tar" / f"{shard}.tar", images[shard::_SHARDS], labels[shard::_SHARDS])
    kind = arrow.struct({"bytes": arrow.binary(), "path": arrow.string()})
    rows = arrow.array([{"bytes": image, "path": None} for image in images], kind)
    table = arrow.table({"image": rows, "label": labels})
    unpacked = {"compression": "none", "use_dictionary": False}
    for name, options in (("plain", unpacked), ("snappy", {})):
        (root / name).mkdir()
        pyarrow.parquet.write_table(
            table, root / name / "0.parquet", row_group_size=_ROW_GROUP, **options
        )
    (root / "arrow").mkdir()
    with pyarrow.ipc.new_stream(root / "arrow" / "0.arrow", table.schema) as stream:
        stream.write_table(table, max_chunksize=1000)
    for path in root.rglob("*.*"):  # files that have just been written are not taken as known
        os.utime(path, (_LONG_AGO_S, _LONG_AGO_S))
    return {
        FOLDER: root / "folder",
        "tar": root / "tar",
        "Parquet, images unpacked": root / "plain",
        "Parquet, packed by Snappy": root / "snappy",
        "Arrow": root / "arrow",
    }


def _write_tar(path: Path, images: Sequence[bytes], labels: Sequence[int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            for ending, content in (("jpg", image), ("cls", str(label).encode())):
                entry = tarfile.TarInfo(f"{number:06d}.{ending}")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))


def _opened(source: Path, cache: Path) -> ImageSet:
    data = DataConfig(source=str(source), val_fraction=0, test_fraction=0.01)
    images = load_splits(data, cache).train
    digests_of(images)
    return images


def _print_reads(
    root: Path, sources: Mapping[str, Path], cache: Path, chosen: argparse.Namespace
) -> None:
    order = random.Random(0)  # noqa: S311 - which images are read
    sets = {name: _opened(source, cache) for name, source in sources.items()}
    places = [order.randrange(len(sets[FOLDER])) for _ in range(chosen.reads)]
    decoded: dict[str, Callable[[int], object]] = {
        name: partial(_each, images.load, places) for name, images in sets.items()
    }
    read: dict[str, Callable[[int], object]] = {
        name: partial(_each, _content_of(images), places) for name, images in sets.items()
    }
    with pyarrow.parquet.ParquetFile(root / "snappy" / "0.parquet") as table:
        by_group = partial(_by_row_group, table)
        decoded[ROW_GROUPS] = partial(
            _each, lambda place: decode_image(by_group(place), "an image"), places
        )
        read[ROW_GROUPS] = partial(_each, by_group, places)
        columns = {"bytes": read, "decoded": decoded}
        seconds = {name: in_turns(sides, chosen.turns) for name, sides in columns.items()}
    print("| images in | bytes: reads/s | over the folder | decoded: images/s | over the folder |")
    print("|---|---|---|---|---|")
    for name in read:
        cells = []
        for column in columns:
            cells.append(f"{rate(seconds[column], name, chosen.reads):,.0f}")
            cells.append(f"{faster(seconds[column], name, FOLDER):.2f}")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def _each(read: Callable[[int], object], places: Sequence[int], turn: int) -> None:
    for place in places:
        read(place)


def _content_of(images: ImageSet) -> Callable[[int], bytes]:
    assert isinstance(images, Subset)
    whole, indices = images.parent, images.indices.tolist()
    of_shard = getattr(whole, "content", None)
    if of_shard is not None:
        return lambda place: of_shard(indices[place])
    path: Any = whole.path  # type: ignore[attr-defined]
    return lambda place: read_bytes(path(indices[place]))


def _by_row_group(table: Any, place: int) -> bytes:
    column = table.read_row_group(place // _ROW_GROUP, ["image.bytes"]).column("image")
    content: bytes = column[place % _ROW_GROUP]["bytes"].as_buffer().to_pybytes()
    return content


def _print_starts(sources: Mapping[str, Path], cache: Path, chosen: argparse.Namespace) -> None:
    """Print the time of a start that knows all images: splits, checks and digests."""
    sides = {name: partial(_start, source, cache) for name, source in sources.items()}
    seconds = in_turns(sides, chosen.turns)
    print("\n| images in | second start, us an image | over the folder |")
    print("|---|---|---|")
    for name in sides:
        time_us = 1e6 / rate(seconds, name, chosen.images)
        print(f"| {name} | {time_us:.1f} | {faster(seconds, name, FOLDER):.2f} |", flush=True)


def _start(source: Path, cache: Path, turn: int) -> None:
    _opened(source, cache)


if __name__ == "__main__":
    main()
