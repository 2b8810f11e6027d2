"""The GPU benchmark in miniature on the CPU."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_every_side_of_every_case_gets_a_row_with_its_speed():
    options = ["--device", "cpu", "--miniature", "--seconds", "0.01"]
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.generation.gpu", *options],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stderr
    rows = re.findall(r"^\| (.+?) \| (32) \| (.+?) \| ([\d.]+) \|", run.stdout, re.MULTILINE)
    cases = {case for case, *_ in rows}
    sides = {side for _, _, side, _ in rows}
    assert len(cases) == 6
    assert {"ours, sdpa, eager", "ours, sdpa, graph", "diffusers, batches of 1"} <= sides
    assert len(rows) == len(cases) * len(sides)
    assert all(float(rate) > 0 for *_, rate in rows)
