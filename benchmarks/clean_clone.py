"""Time a fresh clone that is installed and run as the README says.

    python benchmarks/clean_clone.py [FOLDER]

Clones this repository's HEAD, installs, runs the quickstart with seed 0 and seed 1, then seeds 2
and 3 at once on a second, empty cache, and prints times, accuracies of both sides, what was made
and what was reused.
"""

import json
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Clone, install, run, print."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp()) / "online-aug"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    install_s = _timed(folder, "make", ".venv/.runtime")
    first_s = _timed(folder, "make", "quickstart")
    second_s = _timed(folder, "make", "quickstart", "SEED=1")
    both_s = _two_at_once(folder)
    sys.stdout.write(f"| install | {install_s:.0f} s |\n|---|---|\n")
    for seed, seconds in ((0, first_s), (1, second_s), (2, both_s), (3, both_s)):
        vanilla, summary = (_summary(folder, side, seed) for side in ("vanilla", "augmented"))
        sys.stdout.write(
            f"| seed {seed} | {seconds:.0f} s, first step after {summary['first_step_s']:.1f} s, "
            f"top1 {summary['top1']:.1%} (vanilla {vanilla['top1']:.1%}), "
            f"served {summary['served_real']} real, {summary['served_fresh']} fresh, "
            f"{summary['served_cached']} cached, {summary['starved']} starved; "
            f"{summary['generated']} made, {summary['reused']} reused |\n"
        )
    sys.stdout.write(f"| keys made twice by seeds 2 and 3 | {_made_twice(folder)} |\n")
    sys.stdout.write(f"| processes left | {_processes_in(folder)} |\n")


def _timed(folder: Path, *command: str) -> float:
    started = time.monotonic()
    subprocess.run(command, cwd=folder, check=True)
    return time.monotonic() - started


def _two_at_once(folder: Path) -> float:
    started = time.monotonic()
    runs = [
        subprocess.Popen(
            ["make", "quickstart", f"SEED={seed}", "ARGS=cache.path=runs/shared_cache"], cwd=folder
        )
        for seed in (2, 3)
    ]
    if any(run.wait() for run in runs):
        raise SystemExit("a run failed")
    return time.monotonic() - started


def _summary(folder: Path, side: str, seed: int) -> dict[str, Any]:
    place = folder / "runs" / "compare-quickstart" / f"{side}-seed{seed}"
    found: dict[str, Any] = json.loads((place / "summary.json").read_text())
    return found


def _processes_in(folder: Path) -> int:
    """Return the processes that work in the clone."""
    count = 0
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            count += Path(process.cwd()).is_relative_to(folder.resolve())
    return count


def _made_twice(folder: Path) -> int:
    """Return how many more images two runs report than the cache holds."""
    made = sum(int(_summary(folder, "augmented", seed)["generated"]) for seed in (2, 3))
    command = [".venv/bin/python", "-m", "cache", "stats", "runs/shared_cache", "--json"]
    stats = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout
    return made - int(json.loads(stats)["entries"])


if __name__ == "__main__":
    main()
