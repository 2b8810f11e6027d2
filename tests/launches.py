"""Launchers of ours started from tests, and what they leave."""

import os
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "tests" / "distributed" / "scripts"
LIMIT_S = 120
GONE_S = 5


def environment(**extra):
    clean = {k: v for k, v in os.environ.items() if k not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    return clean | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"} | extra


def wait_for(condition, limit_s=LIMIT_S):
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def is_alive(pid):
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def noted_pids(folder):
    return [
        int(p.read_text())
        for p in folder.iterdir()
        if p.name.startswith(("ready", "grand", "node"))
    ]
