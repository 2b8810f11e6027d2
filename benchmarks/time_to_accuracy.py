"""Measure the wall time to the same accuracy with images made during and before training.

    python benchmarks/time_to_accuracy.py [configs/digits_diff_mix.yaml] [--seeds 3] [--reuse]
        [--dir FOLDER] [key=value ...]

Offline is `online-aug fill` and then a run that only serves the cache and has all cores. Online is
one run on an empty cache that waits for no image. Everything else is the same for each seed, and so
is the fine-tuning, which is made before and not counted. The time runs from the start of the
commands to the end of the first epoch whose validation accuracy reaches the level: the lower of the
best accuracies of both sides. Each online run makes its own images; offline fills once for all
seeds. If online makes fewer images than it serves, it ends with other images than offline: the
table says how many were made, and the accuracy on the test split.

With `--reuse` all runs wait for every image, so that each serves the same ones. The first online
seed makes everything it serves, and the others make nothing, or the exit status is 1. The table
compares their wall times with the first seed and with offline (fill, then one seed). On a CPU a
later seed still leaves half of the cores to its generation process, which has nothing to do.

It takes one fine-tuning, unless the folder has it already, one filling, and two runs per seed; with
`--reuse` one run per seed and one more.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
POLL_S, TELL_EVERY_S = 0.1, 20.0
_STARTED_S = time.monotonic()


@dataclass
class Run:
    """One launch of train.py, observed from outside."""

    name: str
    wall_s: float = 0.0
    reached: list[tuple[float, float]] = field(default_factory=list)
    """Seconds since the launch and validation accuracy, for each epoch."""
    summary: dict[str, Any] = field(default_factory=dict)

    @property
    def best(self) -> float:
        """Return the highest validation accuracy of the run."""
        return max(top1 for _, top1 in self.reached)

    def seconds_to(self, level: float) -> float:
        """Return when the run first reached a validation accuracy, seconds since its launch."""
        return next(seconds for seconds, top1 in self.reached if top1 >= level)


@dataclass(frozen=True)
class Bench:
    """The folder and the common settings of the runs of one comparison."""

    folder: Path
    words: tuple[str, ...]

    def cache(self, name: str) -> str:
        """Return the key that gives runs a cache of this name."""
        return f"cache.path={self.folder / f'cache_{name}'}"

    def fill(self) -> float:
        """Make the whole plan in the cache of the offline runs; return the seconds it took."""
        return _timed("-m", "online_aug", "fill", *self.words, self.cache("offline"))

    def offline(self, seed: int, *words: str) -> Run:
        """Launch a run that serves what `fill` made."""
        return self._train("offline", seed, self.cache("offline"), "devices.generate=none", *words)

    def online(self, seed: int) -> Run:
        """Launch a run that makes its own images while it trains."""
        return self._train("online", seed, self.cache(f"online{seed}"))

    def reusing(self, seed: int) -> Run:
        """Launch a run that waits for its images and shares a cache with the seeds before it."""
        return self._train("reuse", seed, self.cache("reuse"), "mixing.starvation=wait")

    def _train(self, kind: str, seed: int, *words: str) -> Run:
        run = Run(f"{kind}-seed{seed}")
        place, log = self.folder / run.name, self.folder / f"{run.name}.log"
        shutil.rmtree(place, ignore_errors=True)
        command = ["train.py", *self.words, *words, f"run.name={run.name}", f"run.seed={seed}"]
        started = told = time.monotonic()
        with _process(log, *command) as process:
            while True:
                has_ended = process.poll() is not None
                for line in _epochs(place)[len(run.reached) :]:
                    run.reached.append((time.monotonic() - started, line["val_top1"]))
                if has_ended:
                    break
                if time.monotonic() - told > TELL_EVERY_S:
                    told = time.monotonic()
                    _tell(f"  {run.name}: {len(run.reached)} epochs")
                time.sleep(POLL_S)
        run.wall_s = time.monotonic() - started
        if process.returncode:
            raise SystemExit(f"{run.name} failed, see {log}")
        run.summary = json.loads((place / "summary.json").read_text())
        _tell(f"{run.name}: {run.wall_s:.0f} s, at best {run.best:.1%} on validation")
        return run


def main() -> int:
    """Run everything and print the table; return 1 if a seed made images it should reuse."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("words", nargs="*", metavar="config key=value")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--reuse", action="store_true")
    parser.add_argument("--dir", type=Path, default=ROOT / "runs" / "time_to_accuracy")
    options = parser.parse_intermixed_args()
    if options.seeds < 1 + options.reuse:
        parser.error("--seeds must be at least 1, and 2 with --reuse")
    bench = _bench(options.dir.resolve(), options.words)
    tuned_s = _timed("-m", "online_aug", "finetune", *bench.words)
    _tell(f"fine-tuned in {tuned_s:.0f} s, not counted below")
    fill_s = bench.fill()
    _tell(f"filled in {fill_s:.0f} s")
    seeds = range(options.seeds)
    if options.reuse:
        offline = bench.offline(0, "mixing.starvation=wait")
        return _print_reuse(fill_s, offline, [bench.reusing(seed) for seed in seeds])
    _print_pairs(fill_s, [(bench.offline(seed), bench.online(seed)) for seed in seeds])
    return 0


def _bench(folder: Path, words: list[str]) -> Bench:
    """Prepare the comparison in a folder; remove the caches of an earlier one."""
    configs = [word for word in words if "=" not in word]
    config = configs[0] if configs else str(ROOT / "configs" / "digits_diff_mix.yaml")
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob("cache_*"):
        shutil.rmtree(stale)
    given = [word for word in words if "=" in word]
    places = [f"run.dir={folder}", f"finetune.path={folder / 'finetuned'}"]
    return Bench(folder, (config, *given, *places))


def _print_pairs(fill_s: float, pairs: list[tuple[Run, Run]]) -> None:
    ratios = []
    for seed, (offline, online) in enumerate(pairs):
        level = min(offline.best, online.best)
        offline_s, online_s = fill_s + offline.seconds_to(level), online.seconds_to(level)
        ratios.append(offline_s / online_s)
        _print(
            f"seed {seed}, to {level:.1%} on validation: offline {offline_s:.0f} s ({fill_s:.0f} s "
            f"of it filling; {offline.best:.1%} at best), online {online_s:.0f} s "
            f"({online.best:.1%} at best), offline over online {ratios[-1]:.2f}"
        )
    mean = sum(ratios) / len(ratios)
    _print(f"offline over online: mean {mean:.2f}, {min(ratios):.2f} to {max(ratios):.2f}")
    _print_table(fill_s, [run for pair in zip(*pairs, strict=True) for run in pair])


def _print_reuse(fill_s: float, offline: Run, seeds: list[Run]) -> int:
    first, *later = seeds
    shares = ", ".join(f"{run.wall_s / first.wall_s:.2f}" for run in later)
    offline_s = fill_s + offline.wall_s
    _print(
        f"the first seed {first.wall_s:.0f} s, the further ones {shares} of that; offline "
        f"{offline_s:.0f} s ({fill_s:.0f} s of it filling), {offline_s / first.wall_s:.2f} of the "
        "first seed"
    )
    _print_table(fill_s, [offline, *seeds])
    wrong = [run.name for run in later if run.summary["generated"]]
    if wrong:
        _print(f"{', '.join(wrong)} made images that were to be reused")
    return int(bool(wrong))


def _print_table(fill_s: float, runs: list[Run]) -> None:
    _print("| run | wall, s | real | fresh | cached | starved | made | best val, % | test, % |")
    _print("|---|---|---|---|---|---|---|---|---|")
    _print(f"| filling | {fill_s:.0f} | | | | | | | |")
    for run in runs:
        told = run.summary
        names = ("served_real", "served_fresh", "served_cached", "starved", "generated")
        counts = " | ".join(str(told[name]) for name in names)
        top1 = f"{100 * run.best:.1f} | {100 * told['top1']:.1f}"
        _print(f"| {run.name} | {run.wall_s:.0f} | {counts} | {top1} |")


def _epochs(place: Path) -> list[dict[str, Any]]:
    path = place / "metrics.jsonl"
    whole = path.read_text().rpartition("\n")[0] if path.exists() else ""
    return [json.loads(line) for line in whole.splitlines()]


@contextmanager
def _process(log: Path, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """Start one of our commands, and end it if this program ends first."""
    with log.open("w") as file:
        command = [sys.executable, *words]
        process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()


def _timed(*words: str) -> float:
    """Run one of our commands, show its output, and return the seconds it took."""
    started = time.monotonic()
    if status := subprocess.run([sys.executable, *words], cwd=ROOT, check=False).returncode:
        raise SystemExit(status)
    return time.monotonic() - started


def _tell(text: str) -> None:
    _print(f"[{time.monotonic() - _STARTED_S:5.0f} s] {text}")


def _print(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
