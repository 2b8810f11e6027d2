"""Every example is a short program that trains with generated images and leaves no process."""

import re
import runpy
import sys
from pathlib import Path

import pytest
from experiment_samples import make_config
from own_loops import generators

from online_aug.config.loading import resolved_yaml

FOLDER = Path(__file__).parents[2] / "examples"
LIBRARIES = {
    "plain_pytorch": "torch",
    "timm_loop": "timm",
    "lightning_module": "lightning",
    "hf_trainer": "transformers",
    "accelerate_loop": "accelerate",
}
"""The library that each example shows."""
MOST_LINES = 60
MOST_ADDED_LINES = 10


def test_every_example_is_known_and_short():
    found = {path.stem: path for path in FOLDER.glob("[a-z]*.py")}
    assert found.keys() == LIBRARIES.keys()
    for path in found.values():
        assert len(path.read_text().splitlines()) <= MOST_LINES, path


def test_a_plain_loop_needs_few_lines_more():
    added = (FOLDER / "plain_pytorch.py").read_text().count("# +")
    assert 2 <= added <= MOST_ADDED_LINES


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", LIBRARIES)
def test_an_example_trains_and_leaves_no_process(name, tmp_path, tiny_model, monkeypatch, capsys):
    library = LIBRARIES[name]
    pytest.importorskip(library, reason=f"{library} is not installed")
    config = make_config(
        tmp_path,
        tiny_model,
        finetune={"enabled": False},
        mixing={"starvation": "wait", "synthetic_probability": 0.5},
    )
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(resolved_yaml(config))
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setattr(sys, "argv", [name, str(recipe), "run.epochs=2"])
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    assert re.search(r"^test accuracy: \d+\.\d %$", capsys.readouterr().out, re.M)
    assert generators() == []
