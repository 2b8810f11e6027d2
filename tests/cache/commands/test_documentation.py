"""The commands and the program in `docs/CACHE.md` are right."""

import doctest
import re
import shlex
from pathlib import Path

import pytest
from torch.utils.data import DataLoader

from cache import Store
from cache.__main__ import build_parser

TEXT = (Path(__file__).parents[3] / "docs/CACHE.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^python -m cache (.*)$", TEXT, re.MULTILINE)
(PROGRAM,) = re.findall(r"```python\n(import numpy .*?)```", TEXT, re.DOTALL)
(LOADING,) = re.findall(r"```python\n(from datasets .*?)```", TEXT, re.DOTALL)
READING = "\n".join(re.findall(r"```pycon\n(.*?)```", TEXT, re.DOTALL))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_page_parses(command):
    build_parser().parse_args(shlex.split(command, comments=True))


def run_program(folder, monkeypatch):
    """Run the page's first program in a folder and return its names."""
    monkeypatch.chdir(folder)
    found = {}
    exec(PROGRAM, found)
    return found


def test_the_program_of_the_page_stores_and_samples_an_image(tmp_path, monkeypatch):
    found = run_program(tmp_path, monkeypatch)
    assert found["record"].image.shape == (64, 64, 3)
    assert len(found["keys"]) == 64
    with Store("runs/cache", readonly=True) as store:
        assert len(store) == 1


def test_the_reader_of_the_page_prints_what_it_says(tmp_path, monkeypatch):
    run_program(tmp_path, monkeypatch)
    example = doctest.DocTestParser().get_doctest(READING, {}, "CACHE.md", None, 0)
    assert len(example.examples) == 5
    assert doctest.DocTestRunner().run(example, clear_globs=False).failed == 0
    batches = list(DataLoader(example.globs["data"], num_workers=1))
    assert [(images.shape, int(label)) for images, label in batches] == [((1, 64, 64, 3), 3)]


def test_the_loading_of_the_page_gives_classes(birds, tmp_path, monkeypatch, run):
    pytest.importorskip("datasets")
    monkeypatch.chdir(tmp_path)
    run("export", birds, "out")
    found = {}
    exec(LOADING, found)
    assert found["data"].features["label"].names == ["0000", "0001", "0002", "0003"]
    assert {"image", "strength", "score_confidence"} <= found["data"].features.keys()
