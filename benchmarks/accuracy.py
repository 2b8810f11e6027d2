"""Compare vanilla training, CutMix and Diff-Mix on few images with the same number of steps.

    python benchmarks/accuracy.py [key=value ...] [--methods Diff-Mix] [--seeds 5] [--shots 5 10]
        [--parallel 1]

Each run is one launch of train.py on configs/quickstart.yaml. All seeds train on the same images
(`data.seed` 0), so the spread is that of training alone; `--cuts` gives every seed images and a
fine-tuning of its own. Finished runs are not repeated.
"""

import argparse
import json
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

ROOT = Path(__file__).parents[1]
METHODS = {
    "vanilla": ["mixing.synthetic_probability=0"],
    "CutMix": ["mixing.synthetic_probability=0", "optim.cutmix=1.0"],
    "Diff-Mix": [],
}


def main() -> None:
    """Train what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for all runs")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--shots", type=int, nargs="+", default=[5, 10])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--cuts", action="store_true", help="other training images each seed")
    parser.add_argument("--parallel", type=int, default=1, help="runs at the same time")
    parser.add_argument("--dir", type=Path, default=ROOT / "runs" / "accuracy")
    options = parser.parse_args()
    jobs = list(product(options.shots, range(options.seeds), options.methods))
    with ThreadPoolExecutor(options.parallel) as pool:
        found = list(pool.map(lambda job: _top1(options, *job), jobs))
    results = dict(zip(jobs, found, strict=True))
    sys.stdout.write(
        "| images a class | method | test top1, % | of each seed |\n|---|---|---|---|\n"
    )
    for shots, method in product(options.shots, options.methods):
        values = [100 * results[shots, seed, method] for seed in range(options.seeds)]
        spread = statistics.stdev(values) if len(values) > 1 else float("nan")
        each = ", ".join(f"{value:.1f}" for value in values)
        mean = statistics.mean(values)
        sys.stdout.write(f"| {shots} | {method} | {mean:.1f} ± {spread:.1f} | {each} |\n")


def _top1(options: argparse.Namespace, shots: int, seed: int, method: str) -> float:
    """Return the test accuracy at the last epoch of one run; the test split selects nothing."""
    name = f"{method.lower()}-{shots}-{seed}"
    folder = options.dir / name
    if not (folder / "summary.json").exists():
        command = [
            *(sys.executable, str(ROOT / "train.py"), str(ROOT / "configs" / "quickstart.yaml")),
            *(f"run.dir={options.dir}", f"run.name={name}", f"run.seed={seed}"),
            *(f"data.seed={seed if options.cuts else 0}", f"data.examples_per_class={shots}"),
            *(f"data.epoch_repeats={100 // shots}", "mixing.starvation=wait"),
            *(*METHODS[method], *options.overrides),
        ]
        log = options.dir / f"{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w") as file:
            subprocess.run(command, check=True, stdout=file, stderr=subprocess.STDOUT, cwd=ROOT)
    return float(json.loads((folder / "summary.json").read_text())["top1"])


if __name__ == "__main__":
    main()
