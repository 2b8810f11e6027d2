"""The commands and the program in `docs/CACHE.md` are right."""

import re
import shlex
from pathlib import Path

import pytest

from cache import Store
from cache.__main__ import build_parser

TEXT = (Path(__file__).parents[3] / "docs/CACHE.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^python -m cache (.*)$", TEXT, re.MULTILINE)
(PROGRAM,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_page_parses(command):
    build_parser().parse_args(shlex.split(command, comments=True))


def test_the_program_of_the_page_stores_and_samples_an_image(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = {}
    exec(PROGRAM, found)
    assert found["record"].image.shape == (64, 64, 3)
    assert len(found["keys"]) == 64
    with Store("runs/cache", readonly=True) as store:
        assert len(store) == 1
