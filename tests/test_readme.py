import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from readme_example import README, blocks, write_example
from request_samples import make_context

from cache.__main__ import main as cache_main
from online_aug.cli.arguments import parse_command
from online_aug.config.loading import RECIPES, load_config
from online_aug.methods import Source, make_method

ROOT = Path(__file__).parents[1]


def commands():
    lines = "".join(blocks("bash")).splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def check_configuration(argv):
    if "--help" not in argv:
        config_path, *_ = argv
        assert (ROOT / config_path).is_file()
        switches = dict.fromkeys(("--dry-run", "--print-speed"), "")
        command = parse_command(
            [str(ROOT / config_path), *argv[1:]], prog="x", summary="x", switches=switches
        )
        command.load_config()


def check_make(targets):
    goals = [target for target in targets if "=" not in target]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert all(re.search(rf"^{goal}:", makefile, re.MULTILINE) for goal in goals)


def check_module(argv):
    module, *rest = argv
    assert importlib.util.find_spec(module) is not None
    if module.startswith("online_aug."):
        check_configuration(rest)
    else:
        with pytest.raises(SystemExit, match="^0$"):
            cache_main([rest[0], "--help"])


@pytest.mark.parametrize("line", commands())
def test_every_command_parses(line):
    program, *argv = shlex.split(line, comments=True)
    if program == "make":
        check_make(argv)
    elif program == "python" and argv[0] == "-m":
        check_module(argv[1:])
    else:
        assert program in ("python", "deepspeed")
        assert argv[0] == "train.py"
        assert (ROOT / "train.py").is_file()
        check_configuration(argv[1:])


def test_the_first_command_stands_in_the_first_twenty_lines():
    assert "make quickstart" in "\n".join(README.splitlines()[:20])


@pytest.mark.parametrize("target", re.findall(r"\]\((?!http)([^)#]+)\)", README))
def test_every_link_to_a_file_leads_somewhere(target):
    assert (ROOT / target).is_file()


def test_the_files_of_the_map_exist():
    (tree,) = [block for block in blocks("") if block.startswith("train.py")]
    folder = ROOT
    for line in tree.splitlines():
        if not line.startswith("  "):
            folder = ROOT
        names = re.match(r" *(.*?)(  |$)", line)[1].split()
        assert names, line
        assert all((folder / name).exists() for name in names), line
        if names == ["online_aug/"]:
            folder = ROOT / "online_aug"


@pytest.mark.slow
def test_the_method_of_the_readme_runs_in_an_empty_folder(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "online_aug", "train", "quickstart", *write_example(tmp_path)]
        + ["--dry-run"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "requests   " in done.stdout


def test_the_method_of_the_readme_plans_and_labels(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = write_example(tmp_path)
    (settings,) = load_config(RECIPES / "quickstart.yaml", words).methods
    method, context = make_method(settings), make_context(prompts=("a", "b", "c", "d", "e"))
    rng = np.random.default_rng(0)
    request = method.plan(Source(digest="d", label=4), 0, context, rng)
    image = np.zeros((8, 8, 3), np.uint8)
    _, label = method.compose(lambda: image, image, request, context, rng)
    assert (request.prompt, request.strength, label.tolist()) == ("b", 1.0, [0, 1, 0, 0, 0])
