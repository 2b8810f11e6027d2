"""Shards that cannot be used: one clear line, exit status 2, and no run has begun."""

import re

import pyarrow
import pyarrow.parquet
import pytest
from shard_samples import encoded, members_of, noise, write_parquet, write_tar

from online_aug.cli.main import run_command, run_main

LABELS = [0, 1] * 10


def twice(folder):
    members = members_of(noise(20, 0), LABELS)
    write_tar(folder / "0.tar", [*members, *members[:2]])


def cut_short(folder):
    write_tar(folder / "0.tar", members_of(noise(20, 0), LABELS))
    content = (folder / "0.tar").read_bytes()
    (folder / "0.tar").write_bytes(content[:5000])


def unlabelled(folder):
    write_tar(folder / "0.tar", members_of(noise(20, 0), LABELS)[:-1])


def out_of_range(folder):
    write_parquet(folder / "0.parquet", [encoded(p) for p in noise(20, 0)], [*LABELS[:-1], 5])


def without_labels(folder):
    table = pyarrow.table({"image": [encoded(p) for p in noise(20, 0)]})
    pyarrow.parquet.write_table(table, folder / "0.parquet")


def with_images(folder):
    twice(folder)
    (folder / "cat").mkdir()
    (folder / "cat" / "0.png").write_bytes(encoded(noise(1, 0)[0]))


def empty(folder):
    pass


def status_of(*argv):
    """Run a command as the console does."""
    with pytest.raises(SystemExit) as ended:
        run_main(lambda _: run_command(argv))
    return ended.value.code


CASES = {
    twice: r"keys must differ within a shard, .*0\.tar has 0000 twice",
    cut_short: r"0\.tar must be a whole tar file: .*; copy or write it again",
    unlabelled: r"every image must have a label, 0019 of .*0\.tar has none",
    out_of_range: r"must be whole numbers from 0 to 1, .* got 5$",
    without_labels: r"0\.parquet must have a column of labels, got the columns image",
    with_images: r"must hold shards or images, got both",
    empty: r"must hold a folder for each class",
}


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    """Undo what the console command sets for its process."""
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1")


@pytest.mark.parametrize("spoil", CASES, ids=lambda spoil: spoil.__name__)
def test_bad_shards_are_one_clear_line_and_exit_status_2(tmp_path, capsys, spoil):
    (tmp_path / "shards").mkdir()
    spoil(tmp_path / "shards")
    there = {path.name for path in (tmp_path / "shards").iterdir()}
    runs, cache = f"run.dir={tmp_path}/runs", f"cache.path={tmp_path}/cache"
    source = f"data.source={tmp_path}/shards"
    assert status_of("train", "digits_diff_mix", source, runs, cache) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(f"error: .*{CASES[spoil]}.*", line), line
    assert {path.name for path in tmp_path.iterdir()} == {"shards"}
    left = {path.name for path in (tmp_path / "shards").iterdir()} - there
    assert left <= {".online_aug_shards.index", ".online_aug_shards.lock"}


def test_an_unknown_column_is_one_clear_line(tmp_path, capsys):
    write_parquet(tmp_path / "0.parquet", [encoded(p) for p in noise(20, 0)], LABELS)
    source = f"data.source={tmp_path}"
    assert status_of("train", "digits_diff_mix", source, "data.image_key=photo") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: data.image_key must be a column of")
