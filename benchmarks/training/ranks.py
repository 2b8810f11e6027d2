"""The same run on one rank and on two, and on two nodes of two ranks that share the work.

    python -m benchmarks.training.ranks [--part losses|nodes] [--dir FOLDER] [key=value ...]

`losses`: one rank, then two with the same global batches, of a classifier without batch norm (its
statistics are each rank's own) that waits for its images. Prints both loss curves and where they
differ most. `nodes`: two launchers on this machine, each with two ranks and a cache, until all of
the plan are made. Prints who made what, and what the merged caches hold. The exit status is 1 if
the curves differ by more than 1e-3 of the loss, a key was made twice, or one is missing.
"""

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil

from cache import CacheError, Store

ROOT = Path(__file__).parents[2]
SETTINGS = [
    *("data.examples_per_class=5", "data.epoch_repeats=4", "data.hflip=0.5"),
    *("finetune.enabled=false", "generation.num_inference_steps=2"),
    *("generation.variants_per_image=2", "mixing.synthetic_probability=0.5"),
    *("optim.batch_size=20", "classifier.name=test_convnext"),
]
IMAGES = 10 * 5 * 2
"""Images of the plan."""
TOLERANCE = 1e-3
POLL_S = 0.2


def main() -> int:
    """Run the chosen parts; return 1 if one of them failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for all runs")
    parser.add_argument("--part", choices=("losses", "nodes"))
    parser.add_argument("--dir", type=Path, default=ROOT / "runs" / "ranks")
    options = parser.parse_args()
    shutil.rmtree(options.dir, ignore_errors=True)
    options.dir.mkdir(parents=True)
    parts = [options.part] if options.part else ["losses", "nodes"]
    found = [{"losses": losses, "nodes": nodes}[part](options) for part in parts]
    return 0 if all(found) else 1


def losses(options: argparse.Namespace) -> bool:
    """Whether one rank and two have the same loss curve."""
    curves = {}
    for name, devices in (("one rank", "[cpu]"), ("two ranks", "[cpu, cpu]")):
        run = name.replace(" ", "_")
        words = ["mixing.starvation=wait", f"devices.train={devices}", "run.epochs=6"]
        words += [f"cache.path={options.dir / 'cache'}", *options.overrides]
        subprocess.run([sys.executable, *_train(options, run, words)], cwd=ROOT, check=True)
        curves[name] = _losses(options.dir / run)
    for name, curve in curves.items():
        sys.stdout.write(f"{name}: {', '.join(f'{loss:.6f}' for loss in curve)}\n")
    one, two = curves.values()
    difference = max(abs(a - b) / a for a, b in zip(one, two, strict=True))
    sys.stdout.write(f"largest difference: {difference:.1e} of the loss\n")
    return difference < TOLERANCE


def nodes(options: argparse.Namespace) -> bool:
    """Whether two nodes make every image once, and the merged caches hold all."""
    caches = [options.dir / f"cache_{number}" for number in (0, 1)]
    port = _free_port()
    launchers = [_node(options, number, port) for number in (0, 1)]
    try:
        while sum(map(_count, caches)) < IMAGES:
            if any(launcher.poll() is not None for launcher in launchers):
                raise SystemExit(f"a launcher ended, see {options.dir}")
            time.sleep(POLL_S)
        _stop(launchers)
    finally:
        for launcher in launchers:
            launcher.kill()
    made = [_keys(cache) for cache in caches]
    twice = set(made[0]) & set(made[1])
    merged = options.dir / "cache_of_all"
    command = ["-m", "cache", "merge", *map(str, caches), "--into", str(merged)]
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    whole = len(_keys(merged))
    sys.stdout.write(
        f"made by the first node: {len(made[0])}, by the second: {len(made[1])}, by both: "
        f"{len(twice)}; the merged caches hold {whole} of {IMAGES}\n"
    )
    return not twice and whole == IMAGES


def _node(options: argparse.Namespace, number: int, port: int) -> "subprocess.Popen[bytes]":
    hosts = options.dir / "hosts"
    hosts.write_text("node-a slots=2\nnode-b slots=2\n")
    words = [f"cache.path={options.dir / f'cache_{number}'}", "run.epochs=100000"]
    command = [
        *(sys.executable, "-m", "deepspeed.launcher.runner", "--hostfile", str(hosts)),
        *("--quiet", "--no_ssh", "--node_rank", str(number)),
        *("--master_addr", "127.0.0.1", "--master_port", str(port)),
        *_train(options, "nodes", [*words, "devices.train=cpu", *options.overrides]),
    ]
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "DS_ACCELERATOR": "cpu"}
    with (options.dir / f"node_{number}.log").open("w") as log:
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT
        )


def _stop(launchers: list["subprocess.Popen[bytes]"]) -> None:
    """Ask the ranks, which end their launchers by that."""
    for launcher in launchers:
        for process in psutil.Process(launcher.pid).children(recursive=True):
            if "deepspeed.launcher.launch" in process.cmdline():
                for rank in process.children():
                    rank.send_signal(signal.SIGTERM)
    for launcher in launchers:
        launcher.wait()


def _train(options: argparse.Namespace, name: str, words: list[str]) -> list[str]:
    config = str(ROOT / "configs" / "digits_diff_mix.yaml")
    place = [f"run.dir={options.dir}", f"run.name={name}"]
    return [str(ROOT / "train.py"), config, *place, *SETTINGS, *words]


def _losses(run: Path) -> list[float]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["train_loss"] for line in lines]


def _count(cache: Path) -> int:
    try:
        return len(_keys(cache))
    except CacheError:  # not there yet
        return 0


def _keys(cache: Path) -> list[bytes]:
    with Store(cache, readonly=True) as store:
        return [key for _, key in store.tail()]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    sys.exit(main())
