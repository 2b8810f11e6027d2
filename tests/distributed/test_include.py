"""`deepspeed --include`: its ranks take the GPUs it names, and the plan says who shares them."""

import base64
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from deepspeed.launcher.runner import parse_resource_filter

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).parent / "scripts" / "say_plan.py"


def said_by_ranks(folder, include):
    """Return what each rank says on a machine of four GPUs, by its number."""
    chosen = parse_resource_filter({"localhost": [0, 1, 2, 3]}, include_str=include)
    world = base64.urlsafe_b64encode(json.dumps(chosen).encode()).decode()
    launcher = ["-m", "deepspeed.launcher.launch", f"--world_info={world}", "--no_local_rank"]
    subprocess.run(
        [sys.executable, *launcher, SCRIPT, folder],
        env=os.environ | {"PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cuda"},
        check=True,
        timeout=600,
    )
    return {path.name: json.loads(path.read_text()) for path in folder.iterdir()}


@pytest.mark.slow
def test_ranks_train_on_the_gpus_that_include_names_and_the_generator_shares_the_last(tmp_path):
    said = said_by_ranks(tmp_path, "localhost:1,3")
    plan = (
        "train on cuda:0, cuda:1 (4 threads each); "
        "generate on cuda:1 (shared, 25% left to training)"
    )
    assert said == {
        "0": {"visible": "1,3", "device": "cuda:0", "plan": plan},
        "1": {"visible": "1,3", "device": "cuda:1", "plan": plan},
    }
