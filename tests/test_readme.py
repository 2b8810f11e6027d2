import importlib
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
from online_aug.cli.compare import build_parser as compare_parser
from online_aug.cli.digests import build_parser as digests_parser
from online_aug.cli.main import COMMANDS, parse_command
from online_aug.cli.predict import build_parser as predict_parser
from online_aug.cli.publish import build_parser as publish_parser
from online_aug.cli.report import build_parser as report_parser
from online_aug.cli.study import study_parser
from online_aug.config.loading import RECIPES, load_config
from online_aug.methods import Source, make_method
from online_aug.studies import STUDIES

ROOT = Path(__file__).parents[1]


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
DIARY = ROOT / "docs" / "LOG.md"
"""It tells what was done, with the commands of its day."""
PROGRAMS = ("deepspeed", "make", "online-aug", "pip", "python", "torchrun")


def commands():
    """All commands of the pages: bash blocks, lines that begin with `$`, spans that run ours."""
    found = []
    for page in PAGES:
        text = re.sub(r" *\\\n *", " ", page.read_text(encoding="utf-8"))
        found += [line for block in blocks("bash", text) for line in block.splitlines()]
        found += re.findall(r"^\$ (.*)$", text, re.MULTILINE)
        if page != DIARY:
            # "online-aug key 1" and its like name hashes.
            text = re.sub(r"`online-aug \w+ 1`", "", text)
            prose = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
            found += [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]
    lines = [line for line in found if line.split(" ")[0] in PROGRAMS]
    return list(dict.fromkeys(lines))


PARSERS = {
    "digests": digests_parser,
    "predict": predict_parser,
    "publish": publish_parser,
    "report": report_parser,
}
"""The parsers of the commands that take no recipe."""


def check_online_aug(argv):
    if argv[0].startswith("-"):
        assert argv[0] in ("--help", "--print-completion", "--version")
        return
    command, *rest = argv
    assert command in COMMANDS
    if command == "cache":
        check_cache(rest)
    elif command == "study":
        check_study(rest)
    elif command == "compare":
        found = compare_parser().parse_intermixed_args(rest or ["CONFIG"])
        words = [found.recipe, *found.overrides]
        overrides = [word for word in words if "=" in word]
        for recipe in words[: len(words) - len(overrides)]:
            check_recipe(command, [recipe, *overrides])
    elif command in PARSERS:
        assert not rest or PARSERS[command]().parse_args(rest)
    elif rest and "--help" not in rest:
        check_recipe(command, rest)


def check_recipe(command, argv):
    """Load a recipe with its overrides; one that the reader is to have is not loaded."""
    module = importlib.import_module(f"online_aug.cli.{command}")
    switches, options = (getattr(module, n, None) for n in ("SWITCHES", "add_options"))
    found = parse_command(argv, prog="x", summary="x", switches=switches or {}, add_options=options)
    is_the_reader_s = found.recipe.startswith(("runs/", "my_")) or found.recipe in STAND_INS
    if not is_the_reader_s and ".py:" not in " ".join(argv):
        name = found.recipe.removeprefix("configs/").removesuffix(".yaml")
        recipes = sorted(RECIPES.glob(f"{name}.yaml"))
        assert recipes, found.recipe
        for recipe in recipes:
            load_config(recipe, found.overrides)


def check_study(argv):
    if argv:
        name, *rest = argv
        assert name in STUDIES
        found = study_parser(name).parse_intermixed_args(rest or ["CONFIG"])
        check_recipe("study", [found.recipe, *found.overrides])


STAND_INS = ("CONFIG", "NAME", "configs/x.yaml", "flowers.yaml", "my.yaml", "x.yaml", "y.yaml")


def check_cache(argv):
    if argv:
        with pytest.raises(SystemExit, match="^0$"):
            cache_main([argv[0], "--help"])


def check_python(argv):
    if argv[0] == "-m":
        module, *rest = argv[1:]
        if module == "cache":
            check_cache(rest)
        elif module == "online_aug":
            check_online_aug(rest or ["--help"])
        else:
            assert importlib.util.find_spec(module) is not None
    else:
        assert sorted(ROOT.glob(argv[0].replace("NAME", "*")))
        if argv[0] == "train.py" and argv[1:]:
            check_online_aug(["train", *argv[1:]])


def check_launcher(argv):
    """The arguments of a launcher are its own; behind the program they are ours."""
    if "train.py" in argv:
        check_online_aug(["train", *argv[argv.index("train.py") + 1 :]])
    elif argv != ["--help"]:
        check_python(argv[argv.index("-m") :])


def check_make(targets):
    goals = [target for target in targets if "=" not in target]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert all(re.search(rf"^{goal}:", makefile, re.MULTILINE) for goal in goals)


def check_pip(argv):
    assert argv[0] == "install"
    extra = re.search(r"\[(\w+)\]", " ".join(argv))
    if extra:
        assert f"\n{extra[1]} =" in (ROOT / "setup.cfg").read_text(encoding="utf-8")


CHECKS = {
    "deepspeed": check_launcher,
    "make": check_make,
    "online-aug": check_online_aug,
    "pip": check_pip,
    "python": check_python,
    "torchrun": check_launcher,
}


@pytest.mark.parametrize("line", commands())
def test_every_command_parses(line):
    line = re.sub(r"^online-aug (.*) > \S+$", r"online-aug \1", line.partition("  #")[0])
    for part in line.split(" && "):
        program, *argv = (word for word in shlex.split(part) if not word.endswith("..."))
        CHECKS[program](argv or ["--help"])


def test_the_first_command_stands_in_the_first_twenty_lines():
    assert "make quickstart" in "\n".join(README.splitlines()[:20])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_file_or_folder_leads_somewhere(page):
    targets = re.findall(r"\]\((?!http)([^)#]+)", page.read_text(encoding="utf-8"))
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_the_map_is_short_and_names_every_package():
    (tree,) = [block for block in blocks("") if block.startswith("train.py")]
    assert len(tree.splitlines()) <= 28
    folder, named = ROOT, set()
    for line in tree.splitlines():
        names = re.match(r" *(.*?)(  |$)", line)[1].split()
        folder = folder if line.startswith("  ") else ROOT
        assert all((folder / name).exists() for name in names), line
        named |= {folder / name for name in names}
        if names in (["online_aug/"], ["cache/"]):
            folder = ROOT / names[0]
    packages = {path.parent for top in ("online_aug", "cache") for path in inits(ROOT / top)}
    assert packages <= named


def inits(folder):
    return folder.glob("**/__init__.py")


@pytest.mark.slow
def test_the_method_of_the_readme_runs_in_an_empty_folder(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "online_aug", "train", "digits_diff_mix", *write_example(tmp_path)]
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
    (settings,) = load_config(RECIPES / "digits_diff_mix.yaml", words).methods
    method, context = make_method(settings), make_context(prompts=("a", "b", "c", "d", "e"))
    rng = np.random.default_rng(0)
    request = method.plan(Source(digest="d", label=4), 0, context, rng)
    image = np.zeros((8, 8, 3), np.uint8)
    _, label = method.compose(lambda: image, image, request, context, rng)
    assert (request.prompt, request.strength, label.tolist()) == ("b", 1.0, [0, 1, 0, 0, 0])
