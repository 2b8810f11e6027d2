import os
import subprocess
import sys
from pathlib import Path

import pytest

from online_aug.distributed.identity import LAUNCH_FOLDER
from online_aug.distributed.world import World, agree, is_same_everywhere, rank_device, share, total

ROOT = Path(__file__).parents[2]
LAUNCHED = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
}

TRAIN_ONE_STEP = """
from classifier_samples import make_batch, make_config
from online_aug.classifier.model import build_classifier
from online_aug.distributed.world import start_distributed
from online_aug.training.engine import TrainingEngine
config = make_config()
world = start_distributed("cpu")
engine = TrainingEngine(build_classifier(config.classifier, 3), config, world, steps_per_epoch=1)
engine.train_step(make_batch(0))
assert engine.step == 1
"""


@pytest.mark.slow
def test_training_compiles_nothing_says_nothing_and_sets_no_variables(tmp_path):
    environment = {
        "HOME": str(tmp_path / "home"),
        "PATH": str(tmp_path / "no_compiler_here"),
        "TORCH_EXTENSIONS_DIR": str(tmp_path / "torch_extensions"),
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
        "OMP_NUM_THREADS": "1",
    }
    after = "import os; assert not {'RANK', 'LOCAL_RANK', 'DS_ACCELERATOR'} & set(os.environ)"
    ran = subprocess.run(
        [sys.executable, "-c", TRAIN_ONE_STEP + after],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


def test_a_single_rank_is_a_world_of_its_own(world):
    assert (world.rank, world.world_size, world.is_first) == (0, 1, True)
    assert agree(world, 7) == 7
    assert total(world, [1, 0.5]) == [1.0, 0.5]


def set_launched(monkeypatch, **extra):
    for name, value in (LAUNCHED | extra).items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, "cuda:1"),  # somebody else's launcher numbers the GPUs it shows from 0
        ({LAUNCH_FOLDER: "folder"}, "cuda:5"),  # ours shows all of them
    ],
)
def test_a_launched_rank_takes_the_device_of_its_local_rank(monkeypatch, variables, expected):
    monkeypatch.delenv(LAUNCH_FOLDER, raising=False)
    set_launched(monkeypatch, **variables)
    assert rank_device(["cuda:4", "cuda:5"]) == expected


def test_without_a_launcher_the_first_planned_device_trains(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert rank_device(["cuda:2"]) == "cuda:2"


@pytest.mark.parametrize(
    ("local_ranks", "rank", "expected"),
    [
        ((), 0, (1, 0, 4, True)),
        ((0, 1, 2, 3), 3, (1, 0, 4, False)),
        ((0, 1, 0, 1), 1, (2, 0, 2, False)),
        ((0, 1, 0, 1), 2, (2, 1, 2, True)),
        ((0, 0, 0, 0), 2, (4, 2, 1, True)),
        ((0, 1, 2, 0), 2, (2, 0, 3, False)),
        ((0, 1, 2, 0), 3, (2, 1, 1, True)),
    ],
)
def test_local_ranks_tell_the_nodes(local_ranks, rank, expected):
    local_rank = local_ranks[rank] if local_ranks else rank
    found = World(rank, 4, local_rank, "cpu", local_ranks=local_ranks)
    assert (found.nodes, found.node, found.local_world_size, found.is_first_of_node) == expected


def test_a_single_rank_shares_with_itself(world):
    assert share(world, b"content") == b"content"
    assert is_same_everywhere(world, [b"one", b"two"])
