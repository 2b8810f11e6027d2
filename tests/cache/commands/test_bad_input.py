"""Each bad input: one clear line, exit status 2, nothing changed."""

import resource
import subprocess
import sys
from pathlib import Path

import lmdb
import pytest
from exchange_samples import assert_refused, contents, write_image

from cache import Store

ROOT = Path(__file__).parents[3]
READING = [
    ("stats",),
    ("verify",),
    ("list",),
    ("show",),
    ("export", "{out}"),
    ("merge", "--into", "{out}"),
]


def listing(folder):
    # LMDB's lock file grows when it is opened; it holds no data.
    found = {path: path.stat().st_size for path in folder.rglob("*")}
    return {path: size for path, size in found.items() if path.name != "lock.mdb"}


def refuses(run, tmp_path, path, arguments, message):
    before = listing(tmp_path)
    command, *rest = (argument.format(out=tmp_path / "out") for argument in arguments)
    assert_refused(run(command, path, *rest), message)
    assert listing(tmp_path) == before


@pytest.mark.parametrize("arguments", READING)
def test_a_path_that_is_no_cache(arguments, tmp_path, run):
    (tmp_path / "folder").mkdir()
    for name in ("folder", "none"):
        refuses(
            run, tmp_path, tmp_path / name, arguments, "cache path must be a directory with a cache"
        )


@pytest.mark.parametrize("arguments", READING)
def test_another_programs_lmdb(arguments, tmp_path, run):
    with lmdb.open(str(tmp_path / "foreign"), max_dbs=2) as env, env.begin(write=True) as txn:
        txn.put(b"a", b"b")
    message = "cache path must hold a cache, got "
    refuses(run, tmp_path, tmp_path / "foreign", arguments, message)


@pytest.mark.parametrize("arguments", READING)
def test_a_newer_schema(arguments, birds, tmp_path, run):
    with lmdb.open(str(birds), max_dbs=20) as env:
        meta = env.open_db(b"meta", create=False)
        with env.begin(write=True) as txn:
            txn.put(b"n:schema", (99).to_bytes(8, "big"), db=meta)
    refuses(run, tmp_path, birds, arguments, "99")


@pytest.mark.parametrize(
    "arguments", [("show",), ("export", "{out}"), ("merge", "--into", "{out}")]
)
def test_an_empty_cache(arguments, tmp_path, run):
    with Store(tmp_path / "empty") as store:
        store.open()
    refuses(run, tmp_path, tmp_path / "empty", arguments, "there must be a record to")


@pytest.mark.parametrize("format", ["folder", "diff-mix", "webdataset", "parquet"])
def test_exporting_over_what_is_there(format, birds, tmp_path, run):
    pytest.importorskip("pyarrow") if format == "parquet" else None
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("mine")
    before = listing(tmp_path)
    arguments = ("export", birds, tmp_path / "out", "--format", format)
    assert_refused(run(*arguments), "target must not exist")
    assert_refused(run(*arguments, "--force"), "target must be")
    assert listing(tmp_path) == before


def test_force_replaces_an_earlier_export_and_only_that(birds, tmp_path, run):
    run("export", birds, tmp_path / "out")
    assert run("export", birds, tmp_path / "out", "--format", "webdataset", "--force")[0] == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"shard-000000.tar", "export.json"}
    assert {path.name for path in tmp_path.iterdir()} == {"birds", "out"}


def test_an_export_that_fails_keeps_the_earlier_one(birds, tmp_path, run, monkeypatch):
    run("export", birds, tmp_path / "out")
    before = listing(tmp_path)
    monkeypatch.setattr("cache.exchange.folder_formats.as_file", lambda stored: (".png" * 100, b""))
    assert_refused(run("export", birds, tmp_path / "out", "--force"), "target must be writable")
    assert listing(tmp_path) == before


def test_a_target_in_no_folder(birds, tmp_path, run):
    refuses(run, tmp_path, birds, ("export", "{out}/deep/er"), "No such file or directory")


@pytest.mark.parametrize("format", ["folder", "diff-mix", "webdataset", "parquet"])
def test_a_full_disk(format, birds, tmp_path):
    """The kernel refuses to let a file grow, as a full disk does; run in a process of its own."""
    pytest.importorskip("pyarrow") if format == "parquet" else None
    before = listing(tmp_path)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "cache",
            "export",
            str(birds),
            str(tmp_path / "out"),
            "--format",
            format,
        ],
        cwd=ROOT,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert_refused((done.returncode, done.stdout, done.stderr), "room for all")
    assert listing(tmp_path) == before


def test_a_full_disk_under_the_target_of_an_import(birds, tmp_path, run):
    run("export", birds, tmp_path / "out")
    done = subprocess.run(
        [sys.executable, "-m", "cache", "import", str(tmp_path / "c"), str(tmp_path / "out")],
        cwd=ROOT,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert_refused((done.returncode, done.stdout, done.stderr), "disk is full")
    assert not (tmp_path / "c").exists()


def test_parquet_without_pyarrow(birds, tmp_path, run, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    arguments = ("export", "{out}", "--format", "parquet")
    refuses(
        run, tmp_path, birds, arguments, "format parquet needs the package pyarrow; pip install"
    )


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
def test_other_bad_input(arguments, message, birds, tmp_path, run):
    write_image(tmp_path / "photos/a/x.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("one\n")
    names = ("c", "none", "empty", "file", "photos", "birds")
    places = {name: tmp_path / name for name in names}
    before = listing(tmp_path)
    assert_refused(run(*(argument.format(**places) for argument in arguments)), message)
    assert listing(tmp_path) == before


def test_an_interrupted_export_leaves_nothing(birds, tmp_path, run, monkeypatch):
    def interrupt(stored):
        raise KeyboardInterrupt

    monkeypatch.setattr("cache.exchange.folder_formats.as_file", interrupt)
    before = listing(tmp_path)
    assert run("export", birds, tmp_path / "out") == (130, "", "interrupted\n")
    assert listing(tmp_path) == before


def test_every_command_has_examples(run):
    from cache.__main__ import COMMANDS

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
