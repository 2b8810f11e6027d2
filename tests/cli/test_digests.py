"""The command that verifies the digests beside a cache."""

import json
import os

import pytest

from cache import Store
from online_aug.cli.digests import main
from online_aug.cli.main import run_command
from online_aug.errors import UserError
from online_aug.file_digests.known import KnownFiles
from online_aug.file_digests.names import Names

FILES = Names.of(f"cat/{number}.png" for number in range(30))
LONG_AGO = (10**9, 10**9)


@pytest.fixture
def cache(tmp_path):
    path = tmp_path / "cache"
    Store(path).open().close()
    (tmp_path / "cat").mkdir()
    for name in FILES:
        (tmp_path / name).write_text(name)
        os.utime(tmp_path / name, LONG_AGO)
    KnownFiles(path, tmp_path, FILES).digests(range(len(FILES)))
    return path


def damage(path):
    with path.open("r+") as file:
        file.write("X")
    os.utime(path, LONG_AGO)


def test_right_digests_are_status_0(cache, capsys):
    assert run_command(["digests", str(cache)]) == 0
    said = f"{cache.parent}: 30 digests, 0 of changed files, all right\n"
    assert capsys.readouterr().out == said


def test_wrong_digests_are_status_1_once(cache, capsys):
    for name in FILES[:22]:
        damage(cache.parent / name)
    assert main([str(cache)]) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[0].endswith("30 digests, 0 of changed files, 22 wrong, taken out:")
    assert said[1:] == [f"  {name}" for name in FILES[:20]] + ["  and 2 more"]
    assert main([str(cache), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row == {"root": str(cache.parent), "known": 8, "changed": 0, "wrong": []}


def test_a_broken_index_is_said_and_no_fault(cache, capsys):
    next((cache / "digests").glob("*.files")).write_bytes(b"?")
    assert main([str(cache)]) == 0
    assert "broken or of another version, the next run writes it anew" in capsys.readouterr().out


def test_a_folder_without_digests_is_refused(tmp_path):
    with pytest.raises(UserError, match="^the cache must have digests beside it, got .* without"):
        main([str(tmp_path)])
