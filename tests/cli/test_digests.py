"""The command that verifies the digests beside a cache."""

import json
import os

import pytest
from shard_samples import members_of, noise, write_tar

from cache import Store
from online_aug.cli.digests import main
from online_aug.cli.main import run_command
from online_aug.data.settings import DataConfig
from online_aug.data.shards.index import INDEX_FILE
from online_aug.data.sources import load_splits
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


@pytest.fixture
def shards(tmp_path):
    folder = tmp_path / "shards"
    for number in range(2):
        write_tar(folder / f"{number}.tar", members_of(noise(20, number), [0, 1] * 10))
    load_splits(DataConfig(source=str(folder)))
    return folder


def test_right_shards_are_status_0(shards, capsys):
    assert main([str(shards)]) == 0
    said = f"{shards}: 40 digests, 0 of changed files, all right\n"
    assert capsys.readouterr().out == said


@pytest.mark.parametrize("spoilt", ["an image", "a name"])
def test_a_shard_that_rotted_is_status_1_and_read_again_by_the_next_run(shards, capsys, spoilt):
    path = shards / "1.tar"
    content = bytearray(path.read_bytes())
    content[3 * 512 + 512 + 40 if spoilt == "an image" else 0] ^= 1
    path.write_bytes(content)
    os.utime(path, LONG_AGO)
    assert main([str(shards)]) == 1
    out = capsys.readouterr().out
    assert "40 digests, 0 of changed files, 1 wrong, taken out:" in out
    assert "  1.tar" in out
    assert main([str(shards)]) == 0
    assert "20 digests" in capsys.readouterr().out


def test_an_index_of_shards_beside_a_cache_is_verified_too(shards, tmp_path, capsys, monkeypatch):
    Store(tmp_path / "beside").open().close()
    (shards / INDEX_FILE).unlink()
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != shards and access(path, mode))
    load_splits(DataConfig(source=str(shards)), tmp_path / "beside")
    assert main([str(tmp_path / "beside")]) == 0
    assert capsys.readouterr().out.startswith(f"{shards}: 40 digests")
