"""One run killed with signal 9 again and again, compared with one that never was.

    python -m benchmarks.training.resume_torture [--kills 20] [--seed 0] [--dir FOLDER] [key=...]

Both wait for their generator and have a cache of their own, made anew. A launch is killed at a
random moment after it has written a checkpoint of its own, so also while it writes one. Equal to
the last bit: the loss and accuracy of every epoch, every slot of the ledger, the weights. The exit
status is 1 if anything differs.
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
BATCH_SIZE = 10
SETTINGS = [
    *("data.examples_per_class=5", "data.epoch_repeats=4", "finetune.enabled=false"),
    *("generation.num_inference_steps=2", "generation.variants_per_image=2"),
    *("mixing.starvation=wait", "mixing.synthetic_probability=0.5", "optim.mixup=0.4"),
    *(
        f"optim.batch_size={BATCH_SIZE}",
        "optim.ema=0.9",
        "classifier.drop_rate=0.2",
        "data.hflip=0.5",
    ),
    *("classifier.name=test_resnet", "run.epochs=20", "run.checkpoint_steps=3"),
]
FIGURES = ("train_loss", "val_top1", "step", "lr")
LONGEST_S = 1.0


def main() -> int:
    """Train both and compare them; return 1 if they differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for both runs")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--dir", type=Path, default=ROOT / "runs" / "resume_torture")
    options = parser.parse_args()
    for name in ("whole", "torn"):
        shutil.rmtree(options.dir / name, ignore_errors=True)
        shutil.rmtree(options.dir / f"cache_{name}", ignore_errors=True)
    if _launch(options, "whole").wait():
        return 1
    killed_at = _torn(options)
    sys.stdout.write(f"killed after optimizer steps {', '.join(map(str, killed_at))}\n")
    if len(killed_at) < options.kills:
        sys.stdout.write(f"the run ended after {len(killed_at)} kills: give it more run.epochs\n")
        return 1
    differ = [what for what in (_metrics, _ledger, _weights) if not _is_equal(options.dir, what)]
    for what in (_metrics, _ledger, _weights):
        verdict = "DIFFERENT" if what in differ else "equal to the last bit"
        sys.stdout.write(f"{what.__name__.strip('_')}: {verdict}\n")
    return 1 if differ else 0


def _torn(options: argparse.Namespace) -> list[int]:
    """Kill the run as often as asked, then let it end; the newest checkpoint at each kill."""
    moments, killed_at = random.Random(options.seed), list[int]()
    while len(killed_at) < options.kills:
        before = _newest(options.dir / "torn")
        process = _launch(options, "torn")
        while process.poll() is None and _newest(options.dir / "torn") <= before:
            time.sleep(0.005)
        time.sleep(moments.uniform(0, LONGEST_S))
        if process.poll() is not None:
            return killed_at
        process.kill()
        process.wait()
        killed_at.append(_newest(options.dir / "torn"))
    if _launch(options, "torn").wait():
        raise SystemExit("the last launch failed, see above")
    return killed_at


def _launch(options: argparse.Namespace, name: str) -> "subprocess.Popen[bytes]":
    command = [
        *(sys.executable, str(ROOT / "train.py"), str(ROOT / "configs" / "digits_diff_mix.yaml")),
        *(f"run.dir={options.dir}", f"run.name={name}"),
        *(f"cache.path={options.dir / f'cache_{name}'}", *SETTINGS, *options.overrides),
    ]
    log = options.dir / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        return subprocess.Popen(command, stdout=file, cwd=ROOT)


def _newest(folder: Path) -> int:
    """Step of the newest whole checkpoint, -1 without one."""
    marks = (folder / "checkpoints").glob("step_*/complete.json")
    return max((int(mark.parent.name.removeprefix("step_")) for mark in marks), default=-1)


def _is_equal(folder: Path, what: object) -> bool:
    return what(folder / "whole") == what(folder / "torn")  # type: ignore[operator]


def _metrics(run: Path) -> list[list[float]]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [[json.loads(line)[name] for name in FIGURES] for line in lines]


def _ledger(run: Path) -> list[bytes]:
    """Return the real image and the request of each slot, for every epoch."""
    from online_aug.loader.slots import Ledger

    metrics = _metrics(run)
    ledger = Ledger(run / "ledger", batch_size=BATCH_SIZE, steps=int(metrics[0][2]))
    return [ledger.epoch(n)[["index", "number"]].tobytes() for n in range(len(metrics))]


def _weights(run: Path) -> bytes:
    return (run / "model.safetensors").read_bytes()


if __name__ == "__main__":
    sys.exit(main())
