"""Write the page of a cache and measure it in a headless browser.

    python -m benchmarks.caching.page [--images 5000] [--sources 500] [--keep FOLDER]

Fills a cache with cropped, turned and coloured photos of 256 px, writes `cache show --html` of it
with the sources, opens it in Chromium and prints the sizes and times.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import PIL.Image
from PIL import ImageEnhance

from benchmarks._browser import DRIVER, Browser, driver_port
from benchmarks._photos import photo_squares
from cache import Entry, Store, content_digest
from cache.__main__ import main as run_cache
from cache.text import byte_size

SIDE_PX, PHOTO_PX = 256, 320
CLASSES = ("astronaut", "coffee", "rocket", "temple", "flower")
STRENGTHS = (0.3, 0.5, 0.7, 0.9)
BATCH = 200

LOADED = "const t = performance.getEntriesByType('navigation')[0]; return t.domInteractive"
SEARCH = (
    "const start = performance.now(); document.getElementById('text').value = 'flower'; apply();"
    "return performance.now() - start"
)
CARDS = "return document.querySelectorAll('.card').length"
HEAP = "return performance.memory.usedJSHeapSize"


def main(argv: Sequence[str]) -> int:
    """Print what it takes to write the page and to open it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.caching.page", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--images", type=int, default=5000, help="images in the cache")
    parser.add_argument("--sources", type=int, default=500, help="images they are made from")
    parser.add_argument("--keep", type=Path, help="folder to make and keep, to look at the page")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="cache-page-") as temporary:
        folder = arguments.keep or Path(temporary)
        _fill(folder, arguments.images, arguments.sources)
        page, start, start_cpu = folder / "page.html", time.perf_counter(), time.process_time()
        sources = ["--sources", str(folder / "sources"), "--limit", str(arguments.images)]
        run_cache(["show", str(folder / "cache"), "--html", str(page), *sources])
        wall_s, cpu_s = time.perf_counter() - start, time.process_time() - start_cpu
        print(f"written in {wall_s:.1f} s, {cpu_s:.1f} s of CPU: {byte_size(page.stat().st_size)}")
        if DRIVER is not None:
            _measure(page)
    return 0


def _measure(page: Path) -> None:
    with driver_port() as port:
        window = Browser(port)
        window.open(page)
        print(f"ready after {window.run(LOADED) / 1000:.1f} s")
        print(f"cards in the page: {window.run(CARDS)}; heap {byte_size(window.run(HEAP))}")
        print(f"a search takes {window.run(SEARCH):.0f} ms")
        window.close()


def _fill(folder: Path, images: int, sources: int) -> None:
    digests = list(_write_sources(folder / "sources", sources))
    with Store(folder / "cache", codec="jpeg", durability="process") as store:
        for start in range(0, images, BATCH):
            numbers = range(start, min(images, start + BATCH))
            store.put_many([_entry(folder, digests, number) for number in numbers])


def _write_sources(folder: Path, count: int) -> Iterator[str]:
    folder.mkdir(parents=True)
    photos = photo_squares(PHOTO_PX)
    for number in range(count):
        rng = np.random.default_rng(number)
        y, x = rng.integers(PHOTO_PX - SIDE_PX, size=2)
        photo = photos[_class_of(number) * len(photos) // len(CLASSES)]
        crop = PIL.Image.fromarray(photo[y : y + SIDE_PX, x : x + SIDE_PX])
        crop.save(folder / f"{number}.jpg", quality=92)
        yield content_digest((folder / f"{number}.jpg").read_bytes())


def _class_of(source: int) -> int:
    return source % len(CLASSES)


def _entry(folder: Path, digests: Sequence[str], number: int) -> Entry:
    rng, place = np.random.default_rng(number), number % len(digests)
    source, target = _class_of(place), int(rng.integers(len(CLASSES)))
    with PIL.Image.open(folder / "sources" / f"{place}.jpg") as image:
        coloured = ImageEnhance.Color(image).enhance(rng.uniform(0.2, 2.5))
        turned = np.asarray(coloured.rotate(rng.uniform(-15, 15)))
    request = {
        "method": "diff_mix",
        "source_digest": digests[place],
        "source_label": source,
        "target_label": target,
        "strength": STRENGTHS[number % len(STRENGTHS)],
        "prompt": f"a photo of a {CLASSES[target]}",
        "variant": number // len(digests),
        "generator_fingerprint": "0" * 32,
    }
    classes = {"source_class": CLASSES[source], "target_class": CLASSES[target]}
    return Entry(request, turned, {"clip": rng.uniform()}, classes)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
