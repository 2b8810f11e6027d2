"""Measure what listing, checking and naming the training images costs at a start.

    python -m benchmarks.data.first_look [--images 10000 100000] [--folder FOLDER]

Small PNGs of 1,000 classes; for each size a bare parallel read of the files, the first start and
the second, each in a process of its own. Prints seconds of all threads together on the processor,
which other programs do not change much, seconds of the main thread without its waiting for a core,
and the memory that came to that of the libraries.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks._timing import clock_s
from benchmarks.start_up import bare_read_s, write_photos


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", 1)[0])
    parser.add_argument("--images", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--folder", type=Path, help="where to write (default: a temporary one)")
    parser.add_argument("--child", nargs=2, metavar=("SOURCE", "CACHE"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        sys.stdout.write(json.dumps(_look(*map(Path, options.child))))
        return 0
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        for count in options.images:
            source, cache = Path(name) / str(count), Path(name) / f"cache{count}"
            write_photos(source, count)
            _measure(source, cache, count)
    return 0


def _measure(source: Path, cache: Path, count: int) -> None:
    bare_cpu, bare_s, _ = _timed(lambda: bare_read_s(source))
    sys.stdout.write(f"\n{count:,} images\nbare read: {bare_cpu:.2f} s, {bare_s:.2f} s\n")
    for number in ("first", "second"):
        command = [sys.executable, "-m", "benchmarks.data.first_look"]
        done = subprocess.run(
            [*command, "--child", str(source), str(cache)], capture_output=True, check=True
        )
        cpu, seconds, more_mb = json.loads(done.stdout)
        sys.stdout.write(
            f"{number} start: {cpu:.2f} s, {cpu / bare_cpu:.2f} times the bare read; "
            f"{seconds:.2f} s of the main thread; {more_mb:+.0f} MB\n"
        )
        sys.stdout.flush()


def _look(source: Path, cache: Path) -> tuple[float, float, float]:
    from cache import Store
    from online_aug.data.settings import DataConfig
    from online_aug.data.sources import load_splits
    from online_aug.experiment.training_data import TrainingData

    Store(cache).open().close()

    def look() -> object:
        data = TrainingData(str(source), load_splits(DataConfig(source=str(source)), cache).train)
        return data, data.places, data.class_sizes

    return _timed(look)


def _timed(work: Callable[[], object]) -> tuple[float, float, float]:
    """Return seconds of all threads, of this one without waiting for a core, and added memory."""
    cpu, started, before = time.process_time(), clock_s(), _resident_mb()
    kept = work()
    more = _resident_mb() - before
    del kept
    return time.process_time() - cpu, clock_s() - started, more


def _resident_mb() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith("VmRSS")]
    return int(line.split()[1]) / 1000


if __name__ == "__main__":
    sys.exit(main())
