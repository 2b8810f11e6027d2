"""Every bad input ends in one clear line and exit status 2, and changes nothing."""

import sys

import lmdb
import pytest
from cache_samples import overwrite
from exchange_samples import assert_refused, contents, file_size_limit, file_sizes, write_image

from cache import Store
from cache.__main__ import COMMANDS

READING = [
    ("stats",),
    ("verify",),
    ("list",),
    ("show",),
    ("export", "{out}"),
    ("merge", "--into", "{out}"),
]
EXPORTS = ["folder", "diff-mix", "webdataset", "parquet"]


def skip_without_package(format):
    if format == "parquet":
        pytest.importorskip("pyarrow")


def assert_changes_nothing(run, tmp_path, path, arguments, message):
    before = file_sizes(tmp_path)
    command, *rest = (argument.format(out=tmp_path / "out") for argument in arguments)
    assert_refused(run(command, path, *rest), message)
    assert file_sizes(tmp_path) == before


@pytest.mark.parametrize("arguments", READING)
def test_a_path_that_is_no_cache_is_refused(arguments, tmp_path, run):
    (tmp_path / "folder").mkdir()
    message = "cache path must be a directory with a cache"
    for name in ("folder", "none"):
        assert_changes_nothing(run, tmp_path, tmp_path / name, arguments, message)


@pytest.mark.parametrize("arguments", READING)
def test_another_programs_lmdb_is_refused(arguments, tmp_path, run):
    with lmdb.open(str(tmp_path / "foreign"), max_dbs=2) as env, env.begin(write=True) as txn:
        txn.put(b"a", b"b")
    message = "cache path must hold a cache, got "
    assert_changes_nothing(run, tmp_path, tmp_path / "foreign", arguments, message)


@pytest.mark.parametrize("arguments", READING)
@pytest.mark.parametrize("schema", [2, 99])
def test_another_schema_is_refused(schema, arguments, birds, tmp_path, run):
    overwrite(birds, b"meta", b"n:schema", lambda _: schema.to_bytes(8, "big"))
    message = f"cache schema must be 4, got {schema} at"
    assert_changes_nothing(run, tmp_path, birds, arguments, message)


@pytest.mark.parametrize(
    "arguments", [("show",), ("export", "{out}"), ("merge", "--into", "{out}")]
)
def test_an_empty_cache_has_nothing_to_show_or_carry(arguments, tmp_path, run):
    with Store(tmp_path / "empty") as store:
        store.open()
    message = "there must be a record to"
    assert_changes_nothing(run, tmp_path, tmp_path / "empty", arguments, message)


@pytest.mark.parametrize("format", EXPORTS)
def test_an_export_replaces_no_other_files_even_with_force(format, birds, tmp_path, run):
    skip_without_package(format)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("mine")
    before = file_sizes(tmp_path)
    arguments = ("export", birds, tmp_path / "out", "--format", format)
    assert_refused(run(*arguments), "target must not exist")
    assert_refused(run(*arguments, "--force"), "target must be")
    assert file_sizes(tmp_path) == before


def test_force_replaces_an_earlier_export_and_nothing_else(birds, tmp_path, run):
    run("export", birds, tmp_path / "out")
    assert run("export", birds, tmp_path / "out", "--format", "webdataset", "--force")[0] == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"shard-000000.tar", "classes.txt", "export.json"}
    assert {path.name for path in tmp_path.iterdir()} == {"birds", "out"}


def test_an_export_that_fails_keeps_the_earlier_one(birds, tmp_path, run, monkeypatch):
    run("export", birds, tmp_path / "out")
    before = file_sizes(tmp_path)
    too_long = ".png" * 100
    monkeypatch.setattr("cache.exchange.image_folder.as_file", lambda record: (too_long, b""))
    assert_refused(run("export", birds, tmp_path / "out", "--force"), "target must be writable")
    assert file_sizes(tmp_path) == before


def test_an_interrupted_export_leaves_nothing(birds, tmp_path, run, monkeypatch):
    def interrupt(record):
        raise KeyboardInterrupt

    monkeypatch.setattr("cache.exchange.image_folder.as_file", interrupt)
    before = file_sizes(tmp_path)
    assert run("export", birds, tmp_path / "out") == (130, "", "interrupted\n")
    assert file_sizes(tmp_path) == before


def test_a_target_whose_folder_is_missing_is_refused(birds, tmp_path, run):
    arguments = ("export", "{out}/deep/er")
    assert_changes_nothing(run, tmp_path, birds, arguments, "No such file or directory")


@pytest.mark.parametrize("format", EXPORTS)
def test_an_export_to_a_full_disk_leaves_nothing(format, birds, tmp_path, run):
    skip_without_package(format)
    before = file_sizes(tmp_path)
    with file_size_limit(100):
        result = run("export", birds, tmp_path / "out", "--format", format)
    assert_refused(result, "room for all")
    assert file_sizes(tmp_path) == before


def test_an_import_to_a_full_disk_leaves_nothing(birds, tmp_path, run):
    run("export", birds, tmp_path / "out")
    with file_size_limit(30_000):
        result = run("import", tmp_path / "c", tmp_path / "out")
    assert_refused(result, "disk is full")
    assert not (tmp_path / "c").exists()


def test_parquet_without_pyarrow_is_refused(birds, tmp_path, run, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    arguments = ("export", "{out}", "--format", "parquet")
    message = "format parquet needs the package pyarrow; pip install"
    assert_changes_nothing(run, tmp_path, birds, arguments, message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("import", "{c}", "{none}"), "which does not exist"),
        (("import", "{c}", "{birds}"), "source must hold images, got the cache"),
        (("import", "{c}", "{empty}"), "source must hold class folders, got none"),
        (("import", "{c}", "{file}"), "source must be of the format"),
        (("import", "{c}", "{photos}", "--classes", "{none}"), "classes must be a readable"),
        (("import", "{photos}", "{photos}"), "cache path must be new, empty or a cache"),
        (("import", "{c}", "{photos}", "--format", "zip"), "invalid choice: 'zip'"),
        (("export", "{birds}", "{c}", "--format", "zip"), "invalid choice: 'zip'"),
        (("export", "{birds}", "{c}", "--limit", "-1"), "must be a whole number from 0, got '-1'"),
        (("export", "{birds}", "{c}", "--strength", "nan"), "must be a number, got 'nan'"),
        (("export", "{birds}", "{c}", "--method", "none"), "there must be a record to export"),
        (("export", "{birds}", "{c}", "--classes", "{file}"), "classes must name label"),
        (("export", "{birds}"), "the following arguments are required: OUT"),
        (("merge", "{birds}"), "the following arguments are required: --into"),
    ],
)
def test_bad_arguments_change_nothing(arguments, message, birds, tmp_path, run):
    write_image(tmp_path / "photos/a/x.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("one\n")
    names = ("c", "none", "empty", "file", "photos", "birds")
    places = {name: tmp_path / name for name in names}
    before = file_sizes(tmp_path)
    assert_refused(run(*(argument.format(**places) for argument in arguments)), message)
    assert file_sizes(tmp_path) == before


def test_every_command_has_examples(run):
    for command in COMMANDS:
        status, out, _ = run(command.name, "--help")
        assert status == 0
        assert f"python -m cache {command.name} " in out.partition("examples:")[2]
        assert "exit status" in out


def test_reading_commands_change_nothing(birds, tmp_path, run):
    before = contents(birds)
    for arguments in (("stats",), ("verify",), ("list",), ("export", tmp_path / "o")):
        assert run(arguments[0], birds, *arguments[1:])[0] == 0
    assert contents(birds) == before
