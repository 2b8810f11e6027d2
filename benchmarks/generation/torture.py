"""Kill the generation process of a training run again and again, and check what is left.

    python -m benchmarks.generation.torture [--kills 100] [--seed 0]

The run waits for every image it wants, so that each death holds it up. One process in five is
killed while it loads, the others a moment after they have stored an image. At the end the run must
have ended normally and have counted the restarts, everything that was ever stored must still be
there and intact, and no key may be stored twice. Then the trainer of another run is killed, whose
generation process must be gone within 5 s. The exit status is 1 if any of this fails.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

from cache import CacheError, Store
from online_aug.console import progress

ROOT = Path(__file__).parents[2]
DIES_LOADING = 0.2
LOADING_S, WORKING_S = 4.0, 0.3
"""A process is killed at most so long after its start, or after it has stored an image."""
GONE_S = 5.0
LIMIT_S = 600.0
SETTINGS = (
    "data.epoch_repeats=1",
    "mixing.starvation=wait",
    "generation.num_inference_steps=10",
    "generation.slots=4",
    "finetune.steps=2",
    "run.epochs=16",
)


def main(argv: Sequence[str]) -> int:
    """Run both tortures, print the findings and return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--kills", type=int, default=100, help="how often to kill, if the run lasts so long"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        wrong = _torture(Path(folder), options.kills, random.Random(options.seed))
        wrong += _orphan(Path(folder))
    for line in wrong:
        print(f"wrong: {line}")
    return 1 if wrong else 0


def _torture(folder: Path, kills: int, rng: random.Random) -> list[str]:
    run = _train(folder, "tortured", "generation.variants_per_image=8")
    seen: set[bytes] = set()
    done = 0
    with progress("deaths", kills) as bar:
        while done < kills and (victim := _next_generator(run)):
            _live_on(victim, folder / "cache", run, rng)
            victim.kill()
            victim.wait(LIMIT_S)
            seen |= set(_keys(folder / "cache"))
            done += 1
            bar.advance(1)
    status = run.wait(LIMIT_S)
    counted = json.loads((folder / "runs/tortured/summary.json").read_text())["generator_restarts"]
    keys = _keys(folder / "cache")
    with Store(folder / "cache") as store:
        report = store.verify()
        claims = store.stats()["claims_live"]
    print(
        f"{done} deaths, {counted} restarts counted, exit status {status}, {len(keys)} images, "
        f"{len(seen - set(keys))} lost, {_twice(keys)} twice, "
        f"{'clean' if report.is_clean else 'NOT clean'}, {claims} claims left"
    )
    tests = {
        "the run did not end normally": status != 0,
        "restarts were not counted": not done - 1
        <= counted
        <= done,  # the last may come at the end
        "stored images were lost": not seen <= set(keys),
        "a key was stored twice": _twice(keys) > 0,
        "the cache is damaged": not report.is_clean,
        "claims were left": claims > 0,
    }
    return [name for name, is_so in tests.items() if is_so]


def _orphan(folder: Path) -> list[str]:
    run = _train(folder, "orphaned", "generation.seed=1")
    victim = _next_generator(run)
    if victim is None:
        return ["the second run had no generation process"]
    _wait_for(lambda: len(_keys(folder / "cache")), run)
    run.send_signal(signal.SIGKILL)
    killed = time.monotonic()
    try:
        victim.wait(LIMIT_S)
    except psutil.TimeoutExpired:
        return ["the generation process outlived its trainer"]
    took = time.monotonic() - killed
    run.wait(LIMIT_S)
    print(f"the generation process was gone {took:.2f} s after its trainer was killed")
    return [f"that took {took:.1f} s"] if took > GONE_S else []


def _train(folder: Path, name: str, *settings: str) -> "subprocess.Popen[bytes]":
    places = (f"run.dir={folder}/runs", f"cache.path={folder}/cache", f"finetune.path={folder}/ft")
    command = [sys.executable, "train.py", "configs/digits_diff_mix.yaml", f"run.name={name}"]
    with (folder / f"{name}.log").open("wb") as log:
        return subprocess.Popen(
            [*command, *SETTINGS, *places, *settings],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=log,
            stderr=log,
        )


def _next_generator(run: "subprocess.Popen[bytes]") -> psutil.Process | None:
    def look() -> psutil.Process | None:
        try:
            children = psutil.Process(run.pid).children(recursive=True)
            return next((c for c in children if "online_aug.producer" in c.cmdline()), None)
        except psutil.NoSuchProcess:
            return None

    return _wait_for(look, run)


def _live_on(
    victim: psutil.Process, cache: Path, run: "subprocess.Popen[bytes]", rng: random.Random
) -> None:
    if rng.random() < DIES_LOADING:
        time.sleep(rng.uniform(0, LOADING_S))
        return
    before = len(_keys(cache))
    _wait_for(lambda: len(_keys(cache)) > before or not victim.is_running(), run)
    time.sleep(rng.uniform(0, WORKING_S))


def _wait_for(condition: Callable[[], Any], run: "subprocess.Popen[bytes]") -> Any:
    end = time.monotonic() + LIMIT_S
    while run.poll() is None and time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.01)
    return None


def _keys(cache: Path) -> list[bytes]:
    try:
        with Store(cache, readonly=True) as store:
            return [key for _, key in store.tail()]
    except CacheError:
        return []  # not there yet


def _twice(keys: Sequence[bytes]) -> int:
    return sum(count > 1 for count in Counter(keys).values())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
