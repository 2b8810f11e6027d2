"""Measure what a run does before its first step and its first fresh image.

    python -m benchmarks.start_up [quickstart] [key=value ...] [--images 10000 100000]

Starts a training run twice, in processes of their own, with one cache: the second start knows what
the first has seen. Prints the seconds and the share of each stage up to the first fresh image, the
memory of the rank and of its generation process. Time in which the main thread waits for a core is
left out. A run ends with its first fresh image, or with its first epoch if none comes.

With `--images` the recipe is started with sets of so many small files, of 1,000 classes, instead of
its own data, beside a bare parallel read of the files. Ends with 1 if a second start with the most
of them takes more than 1.5 times as long to its first step as with the fewest, or 300 MB more.
"""

import argparse
import builtins
import io
import json
import subprocess
import sys
import tempfile
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import psutil

from benchmarks._timing import clock_s

STAGES = {
    "online_aug.data.sources:load_splits": "data",
    "online_aug.experiment.training_data:digests_of": "data",
    "online_aug.cli.train:check": "checks",
    "online_aug.training.build_loader:check_same_plan": "plan",
    "online_aug.training.build_loader:check_served": "plan",
    "online_aug.training.describe_run:describe_start": "plan",
    "online_aug.experiment.experiment:Experiment.plan_of": "plan",
    "online_aug.loader.pool:SamplePool.__init__": "plan",
    "online_aug.producer.preparation:prepare_generation": "generator",
    "online_aug.loader.head_start:HeadStart.__call__": "generator",
    "online_aug.classifier.model:build_classifier": "classifier",
    "online_aug.training.trainer:TrainingRun.__init__": "classifier",
    "online_aug.training.trainer:TrainingRun.train_epoch": "training",
}
"""The stage that a function belongs to, without the time in functions of other stages."""
STEP = "online_aug.training.trainer:TrainingRun._step"
ORDER = ("imports", "checks", "data", "plan", "generator", "classifier", "training", "other")
MOST_TIMES, MOST_MORE_MB = 1.5, 300.0
CLASSES = 1000


class Stop(BaseException):
    """The first fresh image has come."""


class Stopwatch:
    """Adds the time of the main thread up by stage; an inner stage stops the outer one's clock."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.events: dict[str, float] = {}
        self._begun = self._last = clock_s()
        self._stack = ["other"]

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Charge the block to a stage."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._charge()
        self._stack.append(name)
        try:
            yield
        finally:
            self._charge()
            self._stack.pop()

    def note(self, event: str) -> None:
        """Note when something happens for the first time."""
        self._charge()
        self.events.setdefault(event, self._last - self._begun)

    def _charge(self) -> None:
        now = clock_s()
        self.seconds[self._stack[-1]] += now - self._last
        self._last = now


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the starts of a recipe; 1 if a limit is not met."""
    options = _parser().parse_args(arguments)
    words = [options.recipe, *options.overrides]
    if options.child is not None:
        options.child.write_text(json.dumps(_start(words)))
        return 0
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        if not options.images:
            _start_twice(words, folder)
            return 0
        found = []
        for count in (min(options.images), max(options.images)):
            source = folder / f"photos{count}"
            write_photos(source, count)
            place = folder / str(count)
            place.mkdir()
            sys.stdout.write(f"\n{count:,} images\n")
            read_s = bare_read_s(source)
            found.append(_start_twice([*words, f"data.source={source}"], place, read_s))
    return _verdict(*found)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", 1)[0])
    parser.add_argument("recipe", nargs="?", default="quickstart")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--images", type=int, nargs=2, help="sizes of two sets of small files")
    parser.add_argument("--folder", type=Path, help="where to write (default: a temporary one)")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    return parser


def _start_twice(words: Sequence[str], folder: Path, read_s: float | None = None) -> dict[str, Any]:
    """Print what both starts took; return the second."""
    starts = []
    for number in range(2):
        out = folder / f"start{number}.json"
        own = [f"cache.path={folder / 'cache'}", f"run.dir={folder}", f"run.name=run{number}"]
        command = [sys.executable, "-m", "benchmarks.start_up", *words, *own, "run.epochs=1"]
        log = folder / f"start{number}.log"
        with log.open("w") as file:
            done = subprocess.run(
                [*command, "--child", str(out)], stdout=file, stderr=subprocess.STDOUT, check=False
            )
        if done.returncode or not out.is_file():
            raise SystemExit(log.read_text())
        starts.append(json.loads(out.read_text()))
    _print_starts(starts, read_s)
    return dict(starts[1])


def _print_starts(starts: Sequence[Mapping[str, Any]], read_s: float | None) -> None:
    rows = [f"{'stage':20}{'first start':>18}{'second start':>18}\n"]
    for stage in ORDER:
        cells = []
        for start in starts:
            seconds, whole = start["seconds"].get(stage, 0.0), sum(start["seconds"].values())
            cells.append(f"{seconds:10.2f} s {seconds / whole:4.0%}")
        rows.append(f"{stage:20}{cells[0]:>18}{cells[1]:>18}\n")
    for event in ("first step", "first fresh image"):
        times = [start["events"].get(event) for start in starts]
        cells = ["none" if at is None else f"{at:.2f} s" for at in times]
        rows.append(f"{event:20}{cells[0]:>13}{cells[1]:>18}\n")
    for process in ("rank", "generation process"):
        cells = [f"{start['mb'].get(process, 0):.0f} MB" for start in starts]
        rows.append(f"{process:20}{cells[0]:>13}{cells[1]:>18}\n")
    if read_s is not None:
        rows.append(f"{'bare read of files':20}{read_s:10.2f} s\n")
    sys.stdout.writelines(rows)
    sys.stdout.flush()


def _verdict(few: Mapping[str, Any], many: Mapping[str, Any]) -> int:
    times = many["events"]["first step"] / few["events"]["first step"]
    more = {name: many["mb"][name] - few["mb"][name] for name in few["mb"]}
    is_met = times <= MOST_TIMES and max(more.values()) <= MOST_MORE_MB
    said = ", ".join(f"{name} {mb:+.0f} MB" for name, mb in more.items())
    sys.stdout.write(
        f"\nsecond start to the first step {times:.2f} times as long, {said}; at most "
        f"{MOST_TIMES:g} times and {MOST_MORE_MB:g} MB: {'met' if is_met else 'missed'}\n"
    )
    return 0 if is_met else 1


def _start(words: Sequence[str]) -> dict[str, Any]:
    """Run a recipe in this process up to its first fresh image; return what that took."""
    clock = Stopwatch()
    _time_imports(clock)
    for place, stage in STAGES.items():
        _wrap(place, _in_stage(clock, stage))
    memory: dict[str, float] = {}
    _wrap(STEP, _noted(clock, memory))
    main = import_module("online_aug.cli.train").main
    with suppress(Stop):
        main(words)
    return {"seconds": clock.seconds, "events": clock.events, "mb": memory}


def _time_imports(clock: Stopwatch) -> None:
    plain = builtins.__import__

    def timed(name: str, *rest: Any, **named: Any) -> Any:
        if name in sys.modules:
            return plain(name, *rest, **named)
        with clock.stage("imports"):
            return plain(name, *rest, **named)

    builtins.__import__ = timed


def _wrap(place: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    module, _, path = place.partition(":")
    owner: Any = import_module(module)
    *outer, name = path.split(".")
    for each in outer:
        owner = getattr(owner, each)
    setattr(owner, name, wrap(getattr(owner, name)))


def _in_stage(clock: Stopwatch, stage: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def timed(*arguments: Any, **named: Any) -> Any:
            with clock.stage(stage):
                return function(*arguments, **named)

        return timed

    return wrap


def _noted(
    clock: Stopwatch, memory: dict[str, float]
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return what notes the first step and the first fresh image, and then ends the run."""

    def wrap(step: Callable[..., Any]) -> Callable[..., Any]:
        def noted(run: Any, epoch: int, batch: Any) -> None:
            step(run, epoch, batch)
            clock.note("first step")
            memory["rank"] = _peak_mb(psutil.Process())
            others = [
                one for one in psutil.Process().children() if "producer" in str(one.cmdline())
            ]
            memory["generation process"] = max(map(_peak_mb, others), default=0.0)
            if batch.served.fresh:
                clock.note("first fresh image")
                raise Stop

        return noted

    return wrap


def _peak_mb(process: psutil.Process) -> float:
    status = Path(f"/proc/{process.pid}/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1000


def write_photos(folder: Path, count: int) -> None:
    """Write small PNGs that differ in a text of theirs alone."""
    content = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    PIL.Image.fromarray(pixels).save(content, "PNG")
    head, end = content.getvalue()[:-12], content.getvalue()[-12:]
    for label in range(CLASSES):
        place = folder / "train" / f"class{label:04d}"
        place.mkdir(parents=True)
        for number in range(count // CLASSES):
            unique = (label * count + number).to_bytes(8)
            (place / f"{number:05d}.png").write_bytes(
                head + b"\0\0\0\x08tEXt" + unique + b"none" + end
            )


def bare_read_s(folder: Path) -> float:
    """Return the seconds of reading all files in eight threads."""
    paths = list((folder / "train").glob("*/*.png"))
    started = clock_s()
    with ThreadPoolExecutor(8) as pool:
        parts = [paths[at : at + 256] for at in range(0, len(paths), 256)]
        list(pool.map(lambda part: [len(path.read_bytes()) for path in part], parts))
    return clock_s() - started


if __name__ == "__main__":
    sys.exit(main())
