"""Images that another program made: into a new cache, and into a training without a generator."""

import csv

import pytest
from tiny_runs import PLANNED, Launch, read_summary, run_folder, start

from cache import Store

pytestmark = pytest.mark.slow

WITHOUT_A_GENERATOR = ("generation.model=/no/such/model", "finetune.path=/no/such/folder")


@pytest.fixture(scope="module")
def exported(pair, config, embedded_root):
    """All images of the shared cache as Diff-Mix's scripts write them, with our columns."""
    folder = config.parent / "synthetic"
    names = embedded_root / "digits" / "train"
    options = ("--format", "diff-mix", "--classes", names)
    Launch("-m", "cache", "export", config.parent / "cache", folder, *options).succeed()
    return folder


def leave_what_the_scripts_write(folder):
    """Take the records' own columns out of the table."""
    table = folder / "meta.csv"
    rows = [row[:5] for row in csv.reader(table.open(newline=""))]
    with table.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def test_an_export_comes_back_as_what_the_run_asks_for(exported, config, tmp_path):
    Launch("-m", "cache", "import", tmp_path / "new", exported).succeed()
    overrides = ("devices.generate=none", "mixing.starvation=substitute", "run.epochs=1")
    start(config, "returned", f"cache.path={tmp_path / 'new'}", *overrides).succeed()
    summary = read_summary(run_folder(config, "returned"))
    assert (summary["starved"], summary["generated"]) == (0, 0)
    assert summary["served_cached"] > 0


def test_a_folder_of_diff_mix_is_trained_on_without_a_generator(exported, config, tmp_path):
    leave_what_the_scripts_write(exported)
    Launch("-m", "cache", "import", tmp_path / "new", exported).succeed()
    with Store(tmp_path / "new", readonly=True) as store:
        assert len([*store.requests({"origin": "import"})]) == PLANNED
    overrides = ("mixing.imported=only", "mixing.starvation=substitute", "run.epochs=1")
    overrides += (f"cache.path={tmp_path / 'new'}", *WITHOUT_A_GENERATOR)
    done = start(config, "imported", *overrides).succeed()
    assert f"imported   {PLANNED} images fit\n" in done.out
    summary = read_summary(run_folder(config, "imported"))
    assert (summary["starved"], summary["generated"]) == (0, 0)
    assert 0 < summary["reused"] <= summary["served_cached"]
    assert not (run_folder(config, "imported") / "generator.log").exists()
    assert (run_folder(config, "imported") / "gallery.png").stat().st_size > 10_000
