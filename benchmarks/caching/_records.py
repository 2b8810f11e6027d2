"""Write the same encoded photos to a cache, to bare LMDB and to folders."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import lmdb
import numpy as np

from benchmarks._photos import photo_squares
from cache import Entry, Store, request_key
from cache.codecs import Codec, Pixels, codec_named

CLASSES = 200
COMMIT = 64
_ROLLS = 16
_LARGEST_PX = 512


@dataclass(frozen=True)
class EncodedPhotos:
    """Photos of one size, encoded once; record n holds one of them."""

    images: Sequence[Pixels]
    encoded: Sequence[bytes]
    codec: Codec

    @property
    def side(self) -> int:
        """Height and width, px."""
        return self.images[0].shape[0]

    @property
    def mean_bytes(self) -> float:
        """Mean encoded size, bytes."""
        return float(np.mean([len(data) for data in self.encoded]))

    def data(self, number: int) -> bytes:
        """Return the encoded photo of record `number`."""
        return self.encoded[number % len(self.encoded)]

    def entries(self, start: int, stop: int) -> list[Entry]:
        """Return entries `start` to `stop`, each with a request of its own."""
        images = self.images
        return [Entry(fields(n), images[n % len(images)]) for n in range(start, stop)]

    def decode(self, data: bytes) -> Pixels:
        """Decode a photo as the cache does."""
        return self.codec.decode(data, self.side, self.side)

    @cached_property
    def ready(self) -> Codec:
        """The codec with a look-up in the place of encoding."""
        known = {id(image): data for image, data in zip(self.images, self.encoded, strict=True)}
        return replace(self.codec, encode=lambda image: known[id(image)])


def encode_photos(codec_name: str, target_bytes: int) -> EncodedPhotos:
    """Return photos scaled to the multiple of 8 px at which they take about `target_bytes`."""
    codec = codec_named(codec_name)
    for side in range(16, _LARGEST_PX + 1, 8):
        squares = photo_squares(side)
        if np.mean([len(codec.encode(square)) for square in squares]) >= target_bytes:
            break
    rolled = [np.roll(square, 5 * n, 1) for square in squares for n in range(_ROLLS)]
    return EncodedPhotos(rolled, [codec.encode(image) for image in rolled], codec)


def fields(number: int) -> dict[str, None | int | float | str]:
    """Return a request like those of training; requests differ in `variant`."""
    return {
        "method": "diff_mix",
        "method_version": 1,
        "source_digest": "7cb7eba4f2b2f0d54b6c1a5e3b1d9c0e",
        "source_label": number % CLASSES,
        "target_label": (number * 7 + 3) % CLASSES,
        "target_digest": None,
        "prompt": f"a photo of a <class_{(number * 7 + 3) % CLASSES}> bird",
        "strength": 0.7,
        "guidance_scale": 7.5,
        "image_guidance_scale": None,
        "num_inference_steps": 25,
        "scheduler": "dpmsolver++",
        "resolution": 512,
        "variant": number,
        "noise_seed": number * 2_654_435_761,
        "saliency_version": None,
        "generator_fingerprint": "3f6c1ad0f1b94e0d8e6b3c5f4a2d7e90",
    }


def key_of(number: int) -> bytes:
    """Return the key of record `number`."""
    return request_key(fields(number))


def store_for(photos: EncodedPhotos, path: Path, *, encodes: bool = False) -> Store:
    """Return a store for the photos, which encodes them again or not."""
    store = Store(path, codec=photos.codec.name)
    if not encodes:
        store._codec = photos.ready
    return store


def fill_store(photos: EncodedPhotos, path: Path, records: int) -> None:
    """Fill a cache with so many records."""
    with store_for(photos, path) as store:
        for start, stop in _parts(records, 1000):
            store.put_many(photos.entries(start, stop))


def open_bare(path: Path) -> lmdb.Environment:
    """Open LMDB itself with the flags and sizes that the cache uses."""
    path.mkdir(parents=True, exist_ok=True)
    return lmdb.open(str(path), map_size=2**40, max_readers=2048, lib_version=0)


def fill_bare(photos: EncodedPhotos, path: Path, records: int) -> None:
    """Fill bare LMDB with the encoded photos under the same keys."""
    with open_bare(path) as environment:
        for start, stop in _parts(records, 1000):
            with environment.begin(write=True) as txn:
                for number in range(start, stop):
                    txn.put(key_of(number), photos.data(number))


def fill_folders(photos: EncodedPhotos, path: Path, records: int) -> None:
    """Write the photos as image files in class folders."""
    for label in range(CLASSES):
        (path / f"class_{label:03}").mkdir(parents=True)
    for number in range(records):
        file_of(path, number).write_bytes(photos.data(number))


def file_of(path: Path, number: int) -> Path:
    """Return the path of record `number` in class folders; its suffix says no format."""
    return path / f"class_{number % CLASSES:03}" / f"{number:07}.img"


def _parts(total: int, size: int) -> Iterator[tuple[int, int]]:
    for start in range(0, total, size):
        yield start, min(start + size, total)
