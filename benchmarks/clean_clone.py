"""Time a fresh clone that is installed and run as the README says.

    python benchmarks/clean_clone.py [FOLDER]

Clones this repository's HEAD, installs, runs the quickstart with seed 0 and seed 1, then seeds 2
and 3 at once on a second, empty cache, and prints times, what was made and what was reused.
"""

import json
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

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
        summary = json.loads((folder / f"runs/quickstart-seed{seed}/summary.json").read_text())
        sys.stdout.write(
            f"| seed {seed} | {seconds:.0f} s, first step after {summary['first_step_s']:.1f} s, "
            f"top1 {summary['top1']:.1%}, served {summary['served_real']} real, "
            f"{summary['served_fresh']} fresh, {summary['served_cached']} cached, "
            f"{summary['starved']} starved; {summary['generated']} made, "
            f"{summary['reused']} reused |\n"
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


def _processes_in(folder: Path) -> int:
    """Return the processes that work in the clone."""
    count = 0
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            count += Path(process.cwd()).is_relative_to(folder.resolve())
    return count


def _made_twice(folder: Path) -> int:
    """Return how many more images two runs report than the cache holds."""
    made = sum(
        json.loads((folder / f"runs/quickstart-seed{seed}/summary.json").read_text())["generated"]
        for seed in (2, 3)
    )
    command = [".venv/bin/python", "-m", "cache", "stats", "runs/shared_cache", "--json"]
    stats = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout
    return made - int(json.loads(stats)["entries"])


if __name__ == "__main__":
    main()
