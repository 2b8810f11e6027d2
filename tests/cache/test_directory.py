import multiprocessing
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import lmdb
import pytest
from cache_samples import overwrite

from cache import CacheError, Store
from cache.backend import directory
from cache.backend.directory import check_local, filesystem_of, magic_of

MOUNTS = """/dev/sda1 / ext4 rw 0 0
server:/home /home nfs4 rw 0 0
/dev/sdb1 /home/me/disk xfs rw 0 0
server:/a\\040b /mnt/a\\040b cifs rw 0 0
me@server: /mnt/far fuse.sshfs rw 0 0
pool /mnt/pool fuse.mergerfs rw 0 0
"""


@pytest.fixture
def mounts(tmp_path, monkeypatch):
    path = tmp_path / "mounts"
    path.write_text(MOUNTS)
    monkeypatch.setattr(directory, "MOUNTS", path)
    return path


def pretend_statfs(monkeypatch, magic):
    """Let the kernel's answer begin with that word; no test machine has such a file system."""

    def statfs(path, answer):
        answer[:8] = (magic).to_bytes(8, sys.byteorder)
        return 0

    monkeypatch.setattr(directory.ctypes, "CDLL", lambda _: SimpleNamespace(statfs=statfs))


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def assert_refused(folder, message, **arguments):
    """Check that a store is refused with one line and that no byte in the folder changes."""
    before = contents(folder)
    with pytest.raises(CacheError, match=message) as caught:
        Store(folder, **arguments).open()
    assert "\n" not in str(caught.value)
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/var/cache", "ext4"),
        ("/home/me/cache", "nfs4"),
        ("/home/me/disk/cache", "xfs"),
        ("/homework", "ext4"),
        ("/mnt/a b/c", "cifs"),
        ("/mnt/far", "fuse.sshfs"),
    ],
)
def test_the_deepest_mount_point_decides(mounts, path, kind):
    assert filesystem_of(Path(path), mounts) == kind


@pytest.mark.parametrize("path", ["/home/me/cache", "/mnt/a b/c", "/mnt/far/cache"])
def test_a_network_file_system_is_refused(mounts, path):
    with pytest.raises(CacheError, match="must be on a local disk.*use a local path"):
        check_local(Path(path))


@pytest.mark.parametrize("path", ["/var/cache", "/home/me/disk/cache", "/mnt/pool/cache"])
def test_a_local_file_system_is_taken(mounts, path):
    check_local(Path(path))


def test_a_path_of_unknown_file_system_is_trusted(tmp_path, monkeypatch):
    monkeypatch.setattr(directory, "MOUNTS", tmp_path / "missing")
    monkeypatch.setattr(directory.sys, "platform", "another")
    check_local(Path("/home"))


@pytest.mark.parametrize(
    ("magic", "kind"), [(0x6969, "nfs"), (0xFF534D42, "cifs"), (0x0BD00BD0, "lustre")]
)
def test_a_network_file_system_that_only_the_kernel_knows_is_refused(
    magic, kind, mounts, monkeypatch
):
    pretend_statfs(monkeypatch, magic)
    with pytest.raises(CacheError, match=f"must be on a local disk, got /var/cache on {kind}:"):
        check_local(Path("/var/cache"))


def test_a_store_does_not_open_if_the_kernel_says_nfs(tmp_path, monkeypatch):
    pretend_statfs(monkeypatch, 0x6969)
    with pytest.raises(CacheError, match="on nfs"):
        Store(tmp_path / "cache").open()
    assert not (tmp_path / "cache").exists()


def test_the_file_system_of_a_path_that_does_not_exist_yet_is_known(tmp_path):
    magic = magic_of(tmp_path)
    assert magic == magic_of(tmp_path / "not/made/yet")
    assert magic == int(subprocess.check_output(["stat", "-f", "-c", "%t", tmp_path]), 16)


def test_a_store_on_a_network_file_system_does_not_open(tmp_path, monkeypatch):
    mounts = tmp_path / "mounts"
    mounts.write_text(f"server:/ {tmp_path.resolve()} nfs rw 0 0\n")
    monkeypatch.setattr(directory, "MOUNTS", mounts)
    with pytest.raises(CacheError, match="on nfs"):
        Store(tmp_path / "cache").open()
    assert not (tmp_path / "cache").exists()


def test_an_empty_or_missing_directory_becomes_a_cache(tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("empty", "a/b/c"):
        Store(tmp_path / name).open()
        assert {path.name for path in (tmp_path / name).iterdir()} == {
            "data.mdb",
            "lock.mdb",
            "sound",
        }


def test_a_cache_whose_creator_was_killed_at_once_is_created_anew(tmp_path):
    (tmp_path / "data.mdb").touch()
    (tmp_path / "lock.mdb").touch()
    assert len(Store(tmp_path)) == 0


def test_a_cache_without_its_lock_file_opens(tmp_path):
    store = Store(tmp_path).open()
    store.close()
    (tmp_path / "lock.mdb").unlink()
    assert len(store) == 0


def test_other_files_beside_a_cache_do_no_harm(tmp_path):
    Store(tmp_path).open().close()
    (tmp_path / "README").write_text("mine")
    assert len(Store(tmp_path)) == 0


def test_a_directory_with_other_files_is_refused(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"photo")
    assert_refused(tmp_path, "must be new, empty or a cache.*photo.jpg")


@pytest.mark.parametrize("readonly", [False, True])
@pytest.mark.parametrize("data", [b"text" * 5000, b"short"])
def test_a_file_that_is_no_lmdb_is_refused(tmp_path, data, readonly):
    (tmp_path / "data.mdb").write_bytes(data)
    assert_refused(tmp_path, "must hold a cache", readonly=readonly)


@pytest.mark.parametrize("with_lock", [True, False])
@pytest.mark.parametrize("table", [None, b"meta", b"train"])
def test_the_lmdb_of_another_program_is_refused(tmp_path, table, with_lock):
    with lmdb.open(str(tmp_path), max_dbs=2, lib_version=0) as foreign:
        handle = foreign.open_db(table)
        with foreign.begin(write=True) as txn:
            txn.put(b"key", b"value", db=handle)
    if not with_lock:
        (tmp_path / "lock.mdb").unlink()
    before = contents(tmp_path).keys(), (tmp_path / "data.mdb").read_bytes()
    for readonly in (True, False):
        with pytest.raises(CacheError, match="another program's LMDB"):
            Store(tmp_path, readonly=readonly).open()
    assert (contents(tmp_path).keys(), (tmp_path / "data.mdb").read_bytes()) == before


def test_the_newer_file_format_of_lmdb_is_refused(tmp_path):
    lmdb.open(str(tmp_path), lib_version=1).close()
    (tmp_path / "lock.mdb").unlink()
    assert_refused(tmp_path, "must hold a cache")


@pytest.mark.parametrize("readonly", [False, True])
@pytest.mark.parametrize("schema", [1, 2, 3, 5])
def test_another_schema_is_refused_with_one_line_that_says_what_to_do(tmp_path, schema, readonly):
    Store(tmp_path).open().close()
    overwrite(tmp_path, b"meta", b"n:schema", lambda _: schema.to_bytes(8, "big"))
    Path(tmp_path / "lock.mdb").unlink()
    message = f"cache schema must be 4, got {schema} at .*; name a new directory, or export it with"
    assert_refused(tmp_path, message, readonly=readonly)


def test_a_readonly_store_creates_no_cache(tmp_path):
    assert_refused(tmp_path, "must be a directory with a cache", readonly=True)
    with pytest.raises(CacheError, match="must be a directory with a cache"):
        len(Store(tmp_path / "missing", readonly=True))
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_is_or_leads_through_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("text")
    for path in (tmp_path / "file", tmp_path / "file" / "cache"):
        with pytest.raises(CacheError, match="must be a directory that can be made"):
            Store(path).open()


def test_a_directory_without_permission_to_write_is_refused():
    folder = Path(tempfile.mkdtemp())  # pytest's own are closed to other users

    def try_to_open():
        if os.getuid() == 0:
            os.setuid(65534)  # permissions do not bind root
        for path in (folder, folder / "below"):
            with pytest.raises(CacheError, match=r"Permission denied"):
                Store(path).open()

    try:
        folder.chmod(0o555)
        process = multiprocessing.get_context("fork").Process(target=try_to_open)
        process.start()
        process.join()
        assert process.exitcode == 0
        assert list(folder.iterdir()) == []
    finally:
        folder.chmod(0o755)
        shutil.rmtree(folder)


def test_a_limit_of_address_space_is_named(tmp_path):
    Store(tmp_path / "cache").open().close()
    code = f"from cache import Store; Store({str(tmp_path / 'cache')!r}).open()"
    said = subprocess.run(
        [sys.executable, "-c", code],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (2**36, 2**36)),  # noqa: PLW1509
        capture_output=True,
        text=True,
        check=False,
    )
    assert "needs 1.0 TiB of address space, which takes neither memory nor disk" in said.stderr
    assert "(ulimit -v, here 64.0 GiB): ulimit -v unlimited" in said.stderr
