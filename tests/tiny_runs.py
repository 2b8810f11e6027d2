"""Runs of `train.py` with a tiny random Stable Diffusion: started, watched, and read afterwards."""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import yaml
from warm_launches import warm_server

from cache import CacheError, Store
from online_aug.loader.slots import Ledger

ROOT = Path(__file__).parents[1]
LIMIT_S = 600
GONE_S = 5.0
"""How long a process may outlive the one that started it."""
SOURCES, VARIANTS = 40, 2
PLANNED = SOURCES * VARIANTS
EPOCHS = 4
IMAGES_AN_EPOCH = 120
BATCH_SIZE = 10


def write_config(folder, model, data):
    """Write a configuration that reads `data` and keeps everything else below `folder`."""
    content = {
        "run": {"dir": str(folder / "runs"), "epochs": EPOCHS, "checkpoint_epochs": 1},
        "data": {
            "source": "digits",
            "root": str(data),
            "image_size": 32,
            "examples_per_class": 4,
            "epoch_repeats": 3,
            "metaclass": "digit",
        },
        "method": {"strength": [0.5, 0.9]},
        "mixing": {"starvation": "wait", "synthetic_probability": 0.4},
        "generation": {
            "model": str(model),
            "resolution": 32,
            "num_inference_steps": 10,
            "guidance_scale": 2,
            "variants_per_image": VARIANTS,
            "max_ahead": 1,  # less than is waited for: this must not block
        },
        "finetune": {"steps": 2, "batch_size": 4, "path": str(folder / "finetuned")},
        "cache": {"path": str(folder / "cache")},
        "classifier": {"name": "test_resnet"},
        "optim": {"batch_size": BATCH_SIZE},
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def environment():
    launched = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    kept = {name: value for name, value in os.environ.items() if name not in launched}
    return kept | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}


class Launch:
    """A command of ours in a process of its own."""

    def __init__(self, *command, is_warm=True, told=()):
        """Start it as a fork of a process with its imports done, or cold, as a person does.

        `told` are further variables of its environment.
        """
        if is_warm:
            self.process = warm_server().start(command, environment() | dict(told))
        else:
            self.process = subprocess.Popen(
                [sys.executable, *map(str, command)],
                cwd=ROOT,
                env=environment() | dict(told),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        self.out = self.err = ""

    def wait(self):
        """The exit status; then `out` and `err` hold what was said."""
        self.out, self.err = self.process.communicate(timeout=LIMIT_S)
        return self.process.returncode

    def succeed(self):
        """Wait for status 0."""
        assert self.wait() == 0, f"{self.out}\n{self.err}"
        return self


def start(config, name, *overrides):
    """Start `train.py` on the run of this name."""
    return Launch("train.py", config, f"run.name={name}", *overrides)


def run_folder(config, name):
    return config.parent / "runs" / name


def read_summary(folder):
    return json.loads((folder / "summary.json").read_text())


def read_metrics(folder):
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def ledger_of(folder):
    """Return how every slot of a run was filled, epoch after epoch."""
    rows = Ledger(folder / "ledger", batch_size=BATCH_SIZE, steps=IMAGES_AN_EPOCH // BATCH_SIZE)
    return np.concatenate([rows.epoch(number) for number in range(EPOCHS)])


def count_images(cache):
    """Count the images in a cache that may not be there yet, or is just being made."""
    try:
        with Store(cache, readonly=True) as store:
            return len(store)
    except CacheError as error:
        if "must be a directory with a cache" in str(error):
            return 0
        raise


def processes_of(*words):
    """List the ids of living processes whose command line holds all words."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            said = (place / "cmdline").read_bytes().decode(errors="replace")
            state = (place / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if said and state != "Z" and all(str(word) in said for word in words):
            found.append(int(place.name))
    return found


def generators_of(folder):
    """List the generation processes of a run directory."""
    return processes_of("online_aug.producer", folder)


def wait_for(condition, launch=None, limit_s=LIMIT_S):
    """Wait until `condition` gives something and return it; fail if the launch ends before."""
    end = time.monotonic() + limit_s
    while not (found := condition()):
        assert time.monotonic() < end, "waited in vain"
        if launch is not None and launch.process.poll() is not None:
            launch.wait()
            raise AssertionError(f"ended too early:\n{launch.out}\n{launch.err}")
        time.sleep(0.02)
    return found


@dataclass
class Story:
    """The launches of one run: exit statuses, output, and processes left behind."""

    folder: object
    cache: object
    statuses: list[int] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    left: list[list[int]] = field(default_factory=list)
    gone_s: float = float("inf")

    def end(self, launch):
        """Note how a launch ended, and which of its processes are left `GONE_S` later."""
        self.statuses.append(launch.wait())
        self.said.append(launch.out + launch.err)
        end = time.monotonic() + GONE_S
        while (left := self.processes()) and time.monotonic() < end:
            time.sleep(0.02)
        self.left.append(left)

    def processes(self):
        """List the living processes of the run."""
        return processes_of(self.folder.parents[1], self.folder.name)

    def has_images(self, count):
        return lambda: count_images(self.cache) >= count

    def has_epochs(self, count):
        return lambda: len(read_metrics(self.folder)) >= count

    def stop(self, launch, number):
        """Send a signal and note how the launch ended."""
        launch.process.send_signal(number)
        self.end(launch)
