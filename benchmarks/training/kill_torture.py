"""Every process of a run killed with signal 9 at random moments: what is left, and what is said.

    python -m benchmarks.training.kill_torture [--kills 20] [--seed 0] [--dir FOLDER] [key=...]

A run of two ranks, a loader worker each and a generation process is started again and again. In
each launch one process of its tree dies, a random one at a random moment. Good: after the head's
death nothing is left 5 s later; after another's the run goes on or ends with a status, no
traceback of ours is printed, and nothing is left either; the next launch goes on. The exit status
is 1 if anything else happens.
"""

import argparse
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
SETTINGS = [
    *("data.examples_per_class=5", "data.epoch_repeats=4", "finetune.enabled=false"),
    *("generation.num_inference_steps=2", "generation.variants_per_image=2"),
    *("mixing.synthetic_probability=0.5", "optim.batch_size=10", "classifier.name=test_resnet"),
    *("devices.train=[cpu, cpu]", "data.workers=1"),
    *("run.epochs=100000", "run.checkpoint_steps=5"),
]
LATEST_S = 30.0
GONE_S = 5.0
ENDS_S = 60.0
LATE_SHARE, LONGEST_START_S = 0.8, 300.0
"""Share of the kills whose moment is counted from the start of the ranks, not of the command."""


def main(argv: Sequence[str] | None = None) -> int:
    """Kill as often as asked and print each outcome; return 1 if one was bad."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for all launches")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--latest", type=float, default=LATEST_S, help="moment of a kill, s")
    parser.add_argument("--seed", type=int, default=0, help="of processes and moments")
    parser.add_argument("--dir", type=Path, default=ROOT / "runs" / "kill_torture")
    options = parser.parse_args(argv)
    shutil.rmtree(options.dir, ignore_errors=True)
    options.dir.mkdir(parents=True)
    chance, outcomes = random.Random(options.seed), Counter[str]()
    for number in range(options.kills):
        log = options.dir / f"{number:03d}.log"
        outcome = _kill_one(_launch(options, log), chance, options.latest)
        if "Traceback" in log.read_text(errors="replace"):
            outcome += ", BAD: a traceback"
        outcomes[outcome] += 1
        sys.stdout.write(f"{number + 1}: {outcome}\n")
        sys.stdout.flush()
    for outcome, count in sorted(outcomes.items()):
        sys.stdout.write(f"{count:4d} x {outcome}\n")
    return int(any("BAD" in outcome for outcome in outcomes))


def _launch(options: argparse.Namespace, log: Path) -> psutil.Popen:
    command = [
        *(sys.executable, str(ROOT / "train.py"), str(ROOT / "configs" / "digits_diff_mix.yaml")),
        *(f"run.dir={options.dir}", "run.name=killed", f"cache.path={options.dir / 'cache'}"),
        *SETTINGS,
        *options.overrides,
    ]
    with log.open("wb") as file:
        return psutil.Popen(command, stdout=file, stderr=subprocess.STDOUT, cwd=ROOT)


def _kill_one(head: psutil.Popen, chance: random.Random, latest_s: float) -> str:
    """Kill a process of the tree; return its kind and what came of it."""
    until = time.monotonic() + LONGEST_START_S
    if chance.random() < LATE_SHARE:
        while head.poll() is None and not _has_ranks(head) and time.monotonic() < until:
            time.sleep(0.1)
    time.sleep(chance.uniform(0, latest_s))
    if head.poll() is not None:
        return f"BAD: ended by itself ({head.returncode})"
    tree = [head, *head.children(recursive=True)]
    victim = chance.choice(tree)
    kind = _kind(victim, head)
    with_others = [process for process in tree if process.pid != head.pid]
    victim.kill()
    if kind == "generator":
        time.sleep(GONE_S)
        if head.poll() is None:
            with_others += head.children(recursive=True)
            head.terminate()
    try:
        status = head.wait(ENDS_S)
    except psutil.TimeoutExpired:
        with_others += head.children(recursive=True)
        head.kill()
        status = "BAD: does not end"
    _, left = psutil.wait_procs(with_others, timeout=GONE_S)
    for process in left:
        process.kill()
    said = f"{kind} of {len(tree)} killed, status {status}"
    return f"{said}, BAD: {len(left)} left" if left else f"{said}, nothing left"


def _has_ranks(head: psutil.Popen) -> bool:
    return any(_kind(process, head) == "rank" for process in head.children(recursive=True))


def _kind(process: psutil.Process, head: psutil.Process) -> str:
    if process.pid == head.pid:
        return "head"
    try:
        words = " ".join(process.cmdline())
    except psutil.Error:
        return "short-lived"
    names = {"producer": "generator", "distributed.launcher": "launcher"}
    found = next((kind for word, kind in names.items() if word in words), None)
    if found or "distributed.rank" not in words:
        return found or "helper"
    parent = process.parent()
    is_worker = parent is not None and "distributed.launcher" not in " ".join(parent.cmdline())
    return "worker" if is_worker else "rank"


if __name__ == "__main__":
    sys.exit(main())
