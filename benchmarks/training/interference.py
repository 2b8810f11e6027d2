"""Measure what a paused generation process costs the classifier on the same core.

    python -m benchmarks.training.interference [--rounds 3] [key=value ...]

Launches of train.py on configs/digits_diff_mix.yaml take turns on one core: with a generation
process that has made a few images and pauses, and with none. Almost nothing synthetic is served, so
that it never has to go on. Compared are the classifier's images/s, medians over the epochs behind
the one in which the process made its last image, in both runs. Target: at least 0.98.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from online_aug.console import progress

ROOT = Path(__file__).parents[2]
EPOCHS = 40
FEWEST = 10
"""Epochs that must remain to be compared; with fewer the runs were too short."""
SETTINGS = (
    f"run.epochs={EPOCHS}",
    "mixing.synthetic_probability=1e-9",
    "generation.max_ahead=1",
    "finetune.steps=2",
)
SIDES = {"generator paused": "devices.generate=cpu", "no generator": "devices.generate=none"}


def main(argv: Sequence[str]) -> None:
    """Print both rates of every round and the median of their ratios."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for all runs")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(argv)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])  # and so all that is started
    ratios = []
    with (
        tempfile.TemporaryDirectory() as folder,
        progress("runs", options.rounds * len(SIDES)) as bar,
    ):
        for number in range(options.rounds):
            epochs = {}
            for side, setting in SIDES.items():
                name = f"{side.replace(' ', '_')}_{number}"
                epochs[side] = _epochs(Path(folder), name, [setting, *options.overrides])
                bar.advance(1)
            start = _settled(epochs["generator paused"])
            rates = {side: _rate(lines[start:]) for side, lines in epochs.items()}
            ratios.append(rates["generator paused"] / rates["no generator"])
            shown = ", ".join(f"{side}: {rate:.1f} images/s" for side, rate in rates.items())
            print(f"{shown}, {EPOCHS - start} epochs")
    shown = ", ".join(f"{ratio:.3f}" for ratio in ratios)
    print(f"ratio: {statistics.median(ratios):.3f} (median of {shown})")


def _epochs(folder: Path, name: str, settings: Sequence[str]) -> list[dict[str, float]]:
    places = (f"run.dir={folder}/runs", f"cache.path={folder}/{name}", f"finetune.path={folder}/ft")
    command = [sys.executable, "train.py", "configs/digits_diff_mix.yaml", f"run.name={name}"]
    subprocess.run(
        [*command, *SETTINGS, *places, *settings], cwd=ROOT, check=True, stdout=subprocess.DEVNULL
    )
    lines = (folder / "runs" / name / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def _settled(lines: Sequence[dict[str, float]]) -> int:
    making = [number for number, line in enumerate(lines, 1) if line["generated"]]
    if not making or len(lines) - making[-1] < FEWEST:
        raise SystemExit(f"the generation process must pause {FEWEST} epochs, made in {making}")
    return making[-1]


def _rate(lines: Sequence[dict[str, float]]) -> float:
    return statistics.median(line["images_per_s"] for line in lines)


if __name__ == "__main__":
    main(sys.argv[1:])
