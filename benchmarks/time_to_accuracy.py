"""Wall time to the same accuracy: images made while training, against made first; and the reuse.

    python benchmarks/time_to_accuracy.py [configs/quickstart.yaml] [--seeds 3] [--reuse]
        [--dir FOLDER] [key=value ...]

Offline is `python -m online_aug.fill`, then a run that only serves the cache. Online is one run on
an empty cache, waiting for no image. Both use the same fine-tuning, which is made before and not
counted. Then further seeds train on each of the caches: with offline's they make nothing. The
accuracy is that of the validation split after an epoch; the level is the lower of what both reach
at their best.

With `--reuse` the seeds of the online side wait for every image, so that the first of them makes
all it serves: then each further seed of the recipe makes nothing, or the exit status is 1. Their
wall times stand beside that of the first, and of offline: fill, then one seed.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
POLL_S = 0.1


@dataclass
class Run:
    """One launch of train.py as seen from outside."""

    name: str
    wall_s: float = 0.0
    reached: list[tuple[float, float]] = field(default_factory=list)
    """Seconds since the launch and validation accuracy, an epoch each."""
    summary: dict[str, Any] = field(default_factory=dict)

    def seconds_to(self, level: float) -> float:
        """When it first had this validation accuracy."""
        return next(seconds for seconds, top1 in self.reached if top1 >= level)


def main() -> int:
    """Run all and print the table; 1 if a seed made what was to be reused."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("words", nargs="*", metavar="config key=value")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--reuse", action="store_true")
    parser.add_argument("--dir", type=Path, default=ROOT / "runs" / "time_to_accuracy")
    options = parser.parse_args()
    configs = [word for word in options.words if "=" not in word]
    config = configs[0] if configs else str(ROOT / "configs" / "quickstart.yaml")
    common = [config, *(word for word in options.words if "=" in word)]
    finetuned = options.dir / "finetuned"
    common += [f"run.dir={options.dir}", f"finetune.path={finetuned}"]
    caches = {kind: options.dir / f"cache_{kind}" for kind in ("offline", "online", "reuse")}
    for stale in caches.values():
        shutil.rmtree(stale, ignore_errors=True)
    _command("-m", "online_aug.finetune", *common)
    started = time.monotonic()
    _command("-m", "online_aug.fill", *common, f"cache.path={caches['offline']}")
    fill_s = time.monotonic() - started
    words = {
        "offline": [f"cache.path={caches['offline']}", "devices.generate=none"],
        "online": [f"cache.path={caches['online']}"],
        "reuse": [f"cache.path={caches['reuse']}", "mixing.starvation=wait"],
    }

    def train(kind: str, seeds: int) -> list[Run]:
        return [_train(options.dir, kind, n, [*common, *words[kind]]) for n in range(seeds)]

    if options.reuse:
        return _print_reuse(fill_s, *train("offline", 1), train("reuse", options.seeds))
    _print(fill_s, train("offline", options.seeds), train("online", options.seeds))
    return 0


def _print_reuse(fill_s: float, offline: Run, seeds: list[Run]) -> int:
    first, *later = seeds
    shares = ", ".join(f"{run.wall_s / first.wall_s:.2f}" for run in later)
    offline_s = fill_s + offline.wall_s
    sys.stdout.write(
        f"the first seed {first.wall_s:.0f} s, the further ones {shares} of that; offline "
        f"{offline_s:.0f} s ({fill_s:.0f} s of it filling), {offline_s / first.wall_s:.2f} of the "
        "first seed\n"
    )
    _print_table(fill_s, [offline, *seeds])
    return int(any(run.summary["generated"] for run in later))


def _print(fill_s: float, offline: list[Run], online: list[Run]) -> None:
    level = min(max(top1 for _, top1 in run.reached) for run in (offline[0], online[0]))
    offline_s = fill_s + offline[0].seconds_to(level)
    online_s = online[0].seconds_to(level)
    sys.stdout.write(
        f"to {level:.1%} on validation: offline {offline_s:.0f} s ({fill_s:.0f} s of it filling), "
        f"online {online_s:.0f} s, offline over online {offline_s / online_s:.2f}\n"
    )
    _print_table(fill_s, [*offline, *online])


def _print_table(fill_s: float, runs: list[Run]) -> None:
    lines = [
        "| run | wall, s | made | reused | test top1, % |",
        "|---|---|---|---|---|",
        f"| filling | {fill_s:.0f} | | | |",
        *map(_row, runs),
    ]
    sys.stdout.write("\n".join(lines) + "\n")


def _row(run: Run) -> str:
    told = run.summary
    counts = f"{told['generated']} | {told['reused']}"
    return f"| {run.name} | {run.wall_s:.0f} | {counts} | {100 * told['top1']:.1f} |"


def _train(folder: Path, kind: str, seed: int, words: list[str]) -> Run:
    run = Run(f"{kind}-seed{seed}")
    place = folder / run.name
    shutil.rmtree(place, ignore_errors=True)
    command = [sys.executable, "train.py", *words, f"run.name={run.name}", f"run.seed={seed}"]
    started = time.monotonic()
    with (folder / f"{run.name}.log").open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
    while True:
        has_ended = process.poll() is not None
        for line in _epochs(place)[len(run.reached) :]:
            run.reached.append((time.monotonic() - started, line["val_top1"]))
        if has_ended:
            break
        time.sleep(POLL_S)
    run.wall_s = time.monotonic() - started
    if process.returncode:
        raise SystemExit(f"{run.name} failed, see {folder / f'{run.name}.log'}")
    run.summary = json.loads((place / "summary.json").read_text())
    return run


def _epochs(place: Path) -> list[dict[str, Any]]:
    path = place / "metrics.jsonl"
    whole = path.read_text().rpartition("\n")[0] if path.exists() else ""
    return [json.loads(line) for line in whole.splitlines()]


def _command(*words: str) -> None:
    subprocess.run([sys.executable, *words], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    sys.exit(main())
