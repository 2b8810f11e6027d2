"""URLs as targets and sources, by fsspec's file systems in memory and on the disk."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest
from exchange_samples import assert_refused, bird, contents, file_sizes, write_image
from fsspec.implementations.memory import MemoryFileSystem

from cache import Store
from cache.exchange import urls

FORMATS = ["folder", "diff-mix", "webdataset"]


@pytest.fixture
def memory(tmp_path, monkeypatch):
    """fsspec's file system in memory, empty, and temporary folders that can be looked into."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    files = fsspec.filesystem("memory")
    files.store.clear()
    files.pseudo_dirs[:] = [""]
    yield files
    files.store.clear()
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("url", ["memory://bucket/out", "file://{folder}/out"])
def test_an_export_to_a_url_is_imported_from_it(url, format, birds, memory, tmp_path, run):
    url = url.format(folder=tmp_path)
    status, out, _ = run("export", birds, url, "--format", format)
    assert status == 0
    assert out.split() == ["24", "written", "as", format, "to", url.removeprefix("file://")]
    assert run("import", tmp_path / "back", url)[0] == 0
    assert contents(tmp_path / "back") == contents(birds)


def test_a_url_gets_the_same_files_as_a_folder(birds, memory, tmp_path, run):
    run("export", birds, tmp_path / "out")
    run("export", birds, "memory://bucket/out")
    here = {p.relative_to(tmp_path / "out").as_posix(): p for p in (tmp_path / "out").rglob("*.*")}
    there = {name.removeprefix("/bucket/out/"): name for name in memory.find("/bucket")}
    assert there.keys() == here.keys()
    assert all(memory.cat(there[name]) == here[name].read_bytes() for name in here)


def test_the_file_system_of_the_disk_takes_and_gives_an_export(birds, tmp_path, run):
    run("export", birds, tmp_path / "out")
    url = f"file://{tmp_path}/deep/copy"  # as a command gets it, it would be a path
    target = urls.open_target(url, is_file=False, force=False)
    urls.upload(target, url, tmp_path / "out", lambda done, total: None)
    (tmp_path / "back").mkdir()
    assert urls.download(url, tmp_path / "back", lambda done, total: None) == tmp_path / "back"
    names = {p.relative_to(tmp_path / "out") for p in (tmp_path / "out").rglob("*.*")}
    assert {
        p.relative_to(tmp_path / "deep/copy") for p in (tmp_path / "deep").rglob("*.*")
    } == names
    assert {p.relative_to(tmp_path / "back") for p in (tmp_path / "back").rglob("*.*")} == names - {
        Path("export.json")
    }


def test_names_with_letters_of_patterns_are_names(memory, tmp_path, run):
    names = "[0]", "a[b]c", "x{y}", "0"
    (tmp_path / "names.txt").write_text("\n".join(names) + "\n")
    options = ("--classes", tmp_path / "names.txt")
    with Store(tmp_path / "c", durability="process") as store:
        store.put_many([bird(variant) for variant in range(8)])
    assert run("export", tmp_path / "c", "memory://bucket/out", *options)[0] == 0
    assert {name.split("/")[3] for name in memory.find("/bucket") if name.count("/") > 3} == {
        *names
    }
    arguments = ("export", tmp_path / "c", "memory://bucket/out", *options, "--force", "--limit", 1)
    assert run(*arguments)[0] == 0
    assert len(memory.find("/bucket")) == 3
    assert run("import", tmp_path / "back", "memory://bucket/out")[0] == 0


def test_one_shard_and_one_table_have_urls(birds, memory, tmp_path, run):
    pytest.importorskip("pyarrow")
    run("export", birds, "memory://bucket/out", "--format", "webdataset")
    assert run("import", tmp_path / "back", "memory://bucket/out/shard-000000.tar")[0] == 0
    assert contents(tmp_path / "back") == contents(birds)
    assert run("export", birds, "memory://bucket/x.parquet", "--format", "parquet")[0] == 0
    assert memory.cat("/bucket/x.parquet")[:4] == b"PAR1"


def test_only_what_an_import_reads_is_fetched(birds, memory, tmp_path, run, monkeypatch):
    run("export", birds, "memory://bucket/out")
    memory.pipe_file("/bucket/out/weights.bin", b"large")
    fetched = []
    get = MemoryFileSystem.get
    monkeypatch.setattr(
        MemoryFileSystem,
        "get",
        lambda self, there, here: (fetched.extend(there), get(self, there, here)),
    )
    run("import", tmp_path / "back", "memory://bucket/out")
    assert len(fetched) == 25
    assert {name.rpartition(".")[2] for name in fetched} == {"png", "jpg", "jsonl"}


def test_a_target_that_exists_is_replaced_by_force_only_if_it_is_an_export(birds, memory, run):
    run("export", birds, "memory://bucket/out")
    before = memory.find("/bucket")
    assert_refused(run("export", birds, "memory://bucket/out"), "target must not exist")
    assert memory.find("/bucket") == before
    arguments = ("export", birds, "memory://bucket/out", "--force", "--limit", 3)
    assert run(*arguments)[0] == 0
    assert len(memory.find("/bucket")) == 5
    memory.pipe_file("/bucket/mine/a.txt", b"mine")
    result = run("export", birds, "memory://bucket/mine", "--force")
    assert_refused(result, "target must be new, empty or an earlier export")
    assert memory.find("/bucket/mine") == ["/bucket/mine/a.txt"]


@pytest.mark.parametrize("error", [OSError("quota\nis exceeded"), NotImplementedError(), KeyError])
def test_an_upload_that_breaks_leaves_nothing(error, birds, memory, run, monkeypatch):
    put_file = MemoryFileSystem.put_file

    def break_at_the_table(self, here, there, **options):
        if there.endswith(".jsonl"):
            raise error
        put_file(self, here, there, **options)

    monkeypatch.setattr(MemoryFileSystem, "put_file", break_at_the_table)
    result = run("export", birds, "memory://bucket/out")
    assert_refused(result, "target must be writable with room for all, got memory://bucket/out: ")
    assert memory.find("/") == []
    assert not memory.exists("/bucket/out")


def test_an_interrupted_upload_leaves_nothing(birds, memory, run, monkeypatch):
    def interrupt(self, here, there, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(MemoryFileSystem, "put_file", interrupt)
    assert run("export", birds, "memory://bucket/out") == (130, "", "interrupted\n")
    assert not memory.exists("/bucket/out")


def test_a_place_that_cannot_be_written_is_found_before_any_work(birds, memory, run, monkeypatch):
    def refuse(self, path, value, **options):
        raise PermissionError("Access Denied")

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", refuse)
    monkeypatch.setattr("cache.exchange.exporting.export", None)
    message = "target must be writable, got memory://bucket/out: Access Denied; check the address"
    assert_refused(run("export", birds, "memory://bucket/out"), message)
    assert not memory.exists("/bucket/out")


@pytest.mark.parametrize("url", ["memory://bucket/out", "memory://bucket/x.parquet"])
def test_nothing_is_written_if_no_record_fits(url, birds, memory, run):
    pytest.importorskip("pyarrow")
    format = "parquet" if url.endswith("parquet") else "folder"
    result = run("export", birds, url, "--format", format, "--method", "none")
    assert_refused(result, "there must be a record to export")
    assert memory.find("/") == []


@pytest.mark.parametrize(
    ("command", "url", "message"),
    [
        ("export", "s3://bucket/out", "whose package is installed, got s3://bucket/out: Install s"),
        ("import", "gs://bucket/out", "whose package is installed, got gs://bucket/out: Please in"),
        ("export", "nowhere://a/b", "URL that fsspec knows, as s3://BUCKET/NAME, got nowhere://"),
        ("import", "nowhere://a/b", "URL that fsspec knows, as s3://BUCKET/NAME, got nowhere://"),
        ("export", "memory://", "target must name a folder or file, got memory://"),
        ("import", "memory://", "source must name a folder or file, got memory://"),
        ("import", "memory://bucket/none", "got memory://bucket/none which does not exist"),
        ("import", "memory://bucket/empty", "source must hold class folders, got none in memory:"),
        ("import", "ftp://me:secret@127.0.0.1:9/x", "got ftp://127.0.0.1:9/x: "),
        ("export", "ftp://me:secret@127.0.0.1:9/x", "got ftp://127.0.0.1:9/x: "),
    ],
)
def test_a_url_that_cannot_be_used_is_refused(
    command, url, message, birds, memory, tmp_path, run, monkeypatch
):
    for package in ("s3fs", "gcsfs"):
        monkeypatch.setitem(sys.modules, package, None)
    memory.pipe_file("/bucket/empty/readme.txt", b"")
    path = birds if command == "export" else tmp_path / "c"
    before = file_sizes(tmp_path)
    assert_refused(run(command, path, url), message)
    assert file_sizes(tmp_path) == before
    assert memory.find("/") == ["/bucket/empty/readme.txt"]


def test_a_url_without_fsspec_is_refused(birds, tmp_path, run, monkeypatch):
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    message = "a target that is a URL needs fsspec; pip install fsspec"
    assert_refused(run("export", birds, "memory://bucket/out"), message)


def test_a_name_on_a_server_does_not_lead_out_of_the_folder(memory, tmp_path, run, monkeypatch):
    found = {"/bucket/out/../../up.png": {"size": 1}}
    memory.pipe_file("/bucket/out/a/x.png", b"")
    monkeypatch.setattr(MemoryFileSystem, "find", lambda self, root, detail=False: found)
    result = run("import", tmp_path / "c", "memory://bucket/out")
    assert_refused(result, "path must stay inside the folder")
    assert not (tmp_path / "c").exists()


def test_a_download_that_does_not_fit_is_not_begun(memory, tmp_path, run, monkeypatch):
    write_image(tmp_path / "x.png")
    memory.pipe_file("/bucket/out/a/x.png", (tmp_path / "x.png").read_bytes())
    usage = shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(MemoryFileSystem, "get", None)
    result = run("import", tmp_path / "c", "memory://bucket/out")
    assert_refused(result, "must have room for")
    assert "set TMPDIR to a larger disk" in result[2]


def test_a_broken_image_is_named_as_on_the_server(memory, tmp_path, run):
    write_image(tmp_path / "x.png")
    memory.pipe_file("/bucket/out/a/x.png", (tmp_path / "x.png").read_bytes())
    memory.pipe_file("/bucket/out/a/y.png", b"broken")
    status, out, _ = run("import", tmp_path / "c", "memory://bucket/out", "--json")
    assert (status, json.loads(out)["problems"][0]["name"]) == (1, "a/y.png")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("out", Path("out")),
        ("a::b", Path("a::b")),
        ("file:///data/out", Path("/data/out")),
        ("S3://b/out", "S3://b/out"),
        ("simplecache::s3://b/out", "simplecache::s3://b/out"),
    ],
)
def test_a_place_is_a_path_or_a_url(text, expected):
    assert urls.place(text) == expected


def test_commands_that_need_no_url_import_no_library_for_them():
    libraries = ("fsspec", "huggingface_hub", "datasets", "torch", "online_aug")
    code = f"import sys, cache.__main__; sys.exit(any(n in sys.modules for n in {libraries}))"
    root = Path(__file__).parents[3]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
