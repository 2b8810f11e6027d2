"""The built wheel, installed where this repository is not seen, in an empty folder."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from readme_example import write_example

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
BUILT_FROM = ("online_aug", "cache", "configs")
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
LIMIT_S = 300
QUICK = (
    "run.epochs=1",
    "data.examples_per_class=4",
    "data.epoch_repeats=1",
    "finetune.steps=2",
    "generation.num_inference_steps=2",
    "generation.variants_per_image=1",
    "classifier.name=test_resnet",
    "optim.batch_size=10",
)


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with the installed wheel; it is built from a copy, which no older build spoils."""
    folder = tmp_path_factory.mktemp("wheel")
    copy, target = folder / "copy", folder / "installed"
    for name in BUILT_FROM:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=ignored)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    build = ("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, copy)
    subprocess.run([*PIP, *build], check=True, timeout=LIMIT_S)
    (wheel,) = folder.glob("*.whl")
    install = ("install", "--no-deps", "--target", target, wheel)
    subprocess.run([*PIP, *install], check=True, timeout=LIMIT_S)
    return target


@pytest.fixture
def call(installed, tmp_path):
    """Run Python or `online-aug` of the installed wheel in an empty folder."""
    environment = {
        "HOME": str(tmp_path / "home"),
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(installed),
        "OMP_NUM_THREADS": "1",
    }
    (tmp_path / "empty").mkdir()

    def run(*words, program=installed / "bin" / "online-aug"):
        return subprocess.run(
            [sys.executable, *filter(None, [program]), *words],
            cwd=tmp_path / "empty",
            env=environment,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )

    return run


def test_it_is_the_wheel_that_is_imported(call, installed):
    code = "import cache, online_aug; print(cache.__file__); print(online_aug.__file__)"
    lines = call("-c", code, program=None).stdout.splitlines()
    assert [Path(line).parents[1] for line in lines] == [installed, installed]


def test_help_lists_the_commands(call):
    shown = call("--help")
    assert shown.returncode == 0
    assert "online-aug train quickstart" in shown.stdout


def test_a_wrong_key_is_one_line_and_writes_nothing(call, tmp_path):
    refused = call("train", "quickstart", "run.sed=1")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith("error: run.sed is no known key, got 1; did you mean run.seed")
    assert refused.stderr.count("\n") == 1
    assert list((tmp_path / "empty").iterdir()) == []


def test_a_recipe_is_found_by_its_name_and_trains(call, tmp_path):
    planned = call("train", "digits_diff_mix", "--dry-run", *QUICK)
    assert planned.returncode == 0, planned.stderr
    assert "requests   40 (40 sources x 1)" in planned.stdout
    trained = call("train", "digits_diff_mix", *QUICK)
    assert trained.returncode == 0, trained.stderr
    folder = tmp_path / "empty" / "runs" / "digits_diff_mix-seed0"
    assert json.loads((folder / "summary.json").read_text())["epochs"] == 1
    judged = call("evaluate", "runs/digits_diff_mix-seed0", "--json")
    top1 = json.loads((folder / "summary.json").read_text())["top1"]
    assert json.loads(judged.stdout)["top1"] == pytest.approx(top1)
    assert not {path.name for path in (tmp_path / "empty").iterdir()} - {"runs", "data"}


def test_the_method_of_the_readme_runs_in_an_empty_folder(call, tmp_path):
    done = call("train", "digits_diff_mix", *write_example(tmp_path / "empty"), "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "requests   " in done.stdout
