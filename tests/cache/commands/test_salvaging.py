"""Whatever became of LMDB's pages, `verify --repair` brings back records whose bytes are whole."""

import os
from types import SimpleNamespace

import numpy as np
import pytest
import schema_1
from exchange_samples import assert_refused, bird, contents
from hypothesis import given, settings
from hypothesis import strategies as st

from cache import Entry, Keys, Store, request_key
from cache.__main__ import main
from cache.backend import opening
from cache.commands.maintain import DAMAGED

PAGE_BYTES = 4096


def noise(number):
    """An entry with an image of four pages, beside the birds that share pages."""
    rng = np.random.default_rng(number)
    return Entry({"noise": number}, rng.integers(0, 256, (70, 70, 3), dtype=np.uint8))


ENTRIES = [bird(number) if number % 2 else noise(number) for number in range(16)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The bytes of a small cache's file."""
    with Store(tmp_path_factory.mktemp("whole"), codec="raw") as store:
        for entry in ENTRIES:
            store.put_many([entry])
    return (store.path / "data.mdb").read_bytes()


@pytest.fixture
def damaged(tmp_path, whole):
    """A cache whose tree no longer leads anywhere: every page that is not a record's is zero."""
    return write(tmp_path / "cache", without_tree(whole))


def without_tree(whole):
    kept = bytearray(len(whole))
    for start, end in extents(whole).values():
        kept[start:end] = whole[start:end]
    return bytes(kept)


def with_roots_only(whole):
    """The two pages that name the roots, which are no longer there, and the records."""
    return whole[: 2 * PAGE_BYTES] + without_tree(whole)[2 * PAGE_BYTES :]


def extents(whole):
    """Where in the file the bytes of each record are, by key."""
    found = {}
    for entry in ENTRIES:
        pixels = whole.find(entry.image.tobytes())
        start = whole.rfind(b"OARC", 0, pixels)
        found[request_key(entry.request)] = (start, pixels + entry.image.size)
    return found


def write(path, content):
    path.mkdir()
    (path / "data.mdb").write_bytes(content)
    return path


def test_every_record_comes_back_in_the_order_of_arrival(damaged, run):
    status, out, _ = run("verify", damaged, "--repair")
    assert status == 0
    assert "16 records taken into a new file" in out
    assert out.endswith("all well\n")
    with Store(damaged, readonly=True) as store:
        assert [key for _, key in store.tail()] == [request_key(e.request) for e in ENTRIES]
        for entry in ENTRIES:
            assert np.array_equal(store.get(request_key(entry.request)).image, entry.image)


def test_records_of_the_first_version_come_back_too(tmp_path, run):
    requests = [{"method": "demo", "variant": variant} for variant in range(6)]
    schema_1.write(tmp_path / "old", requests)
    roots = (tmp_path / "old/data.mdb").read_bytes()
    path = write(tmp_path / "cache", bytes(2 * PAGE_BYTES) + roots[2 * PAGE_BYTES :])
    assert run("verify", path, "--repair")[0] == 0
    assert contents(path).keys() == {request_key(request) for request in requests}


def test_the_damaged_file_is_kept_and_never_replaced(damaged, run):
    before = (damaged / "data.mdb").read_bytes()
    run("verify", damaged, "--repair")
    assert (damaged / DAMAGED).read_bytes() == before
    (damaged / "data.mdb").write_bytes(before)
    assert_refused(run("verify", damaged, "--repair"), "must be moved away before another")
    assert (damaged / "data.mdb").read_bytes() == before


def test_what_was_salvaged_is_a_cache_like_any_other(damaged, run):
    run("verify", damaged, "--repair")
    assert run("verify", damaged)[0] == 0
    with Store(damaged) as store:
        assert store.put_many([bird(100), ENTRIES[0]]) == 1
        assert store.evict(Keys((request_key(ENTRIES[1].request),))) == 1
    assert sorted(path.name for path in damaged.iterdir()) == [
        *("data.mdb", DAMAGED, "lock.mdb", "sound")
    ]


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 40), st.binary(min_size=1, max_size=64)), min_size=1))
def test_records_that_were_not_overwritten_come_back_and_no_other_image_does(
    tmp_path_factory, whole, junk
):
    content, places = bytearray(without_tree(whole)), set()
    for page, data in junk:
        at = page * PAGE_BYTES % len(whole) + len(data)
        content[at : at + len(data)] = data
        places.update(range(at, at + len(data)))
    path = write(tmp_path_factory.mktemp("junk") / "cache", bytes(content))
    untouched = {
        k for k, (start, end) in extents(whole).items() if not places & {*range(start, end)}
    }
    assert main(["verify", str(path), "--repair"]) == 0
    expected = {request_key(entry.request): entry.image.tobytes() for entry in ENTRIES}
    found = {key: pixels for key, (_, _, _, (_, pixels)) in contents(path).items()}
    assert untouched <= found.keys()
    assert all(expected[key] == pixels for key, pixels in found.items())


def test_without_repair_a_damaged_cache_is_refused_and_stays_as_it_is(damaged, run):
    before = (damaged / "data.mdb").read_bytes()
    assert_refused(run("verify", damaged), "")
    assert (damaged / "data.mdb").read_bytes() == before
    assert [path.name for path in damaged.iterdir()] == ["data.mdb"]


def test_a_copy_is_examined_once_by_verify(tmp_path, whole, run, monkeypatch):
    path, examined = write(tmp_path / "cache", whole), []
    look = opening._examine

    def examine(where):
        examined.append(where)
        return look(where)

    monkeypatch.setattr(opening, "_examine", examine)
    assert run("verify", path)[0] == 0
    assert examined == [path]


def test_the_refusal_of_a_damaged_page_names_the_repair(tmp_path, whole, run):
    path = write(tmp_path / "cache", with_roots_only(whole))
    assert_refused(run("stats", path), f"python -m cache verify --repair {path}")


def test_a_page_that_rots_without_a_trace_in_the_file_system_is_found_by_verify(tmp_path, run):
    with Store(tmp_path / "cache", codec="raw") as store:
        store.put_many(ENTRIES)
    file = store.path / "data.mdb"
    before = file.stat()
    file.write_bytes(with_roots_only(file.read_bytes()))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert_refused(run("verify", store.path), "is damaged")
    assert run("verify", store.path, "--repair")[0] == 0
    assert len(contents(store.path)) == len(ENTRIES)


def test_a_file_without_a_whole_record_is_refused_and_stays_as_it_is(tmp_path, run):
    path = write(tmp_path / "cache", b"OARC" * 5000)
    assert_refused(run("verify", path, "--repair"), "must hold a cache")
    assert (path / "data.mdb").read_bytes() == b"OARC" * 5000


def test_a_cache_that_is_open_elsewhere_is_not_replaced(damaged, run, monkeypatch):
    monkeypatch.setattr("cache.backend.maintenance.fcntl.lockf", refuse)
    assert_refused(run("verify", damaged, "--repair"), "by another process")
    assert not (damaged / DAMAGED).exists()


def refuse(*_):
    raise OSError("locked")


def test_a_full_disk_leaves_the_damaged_file_where_it_was(damaged, run, monkeypatch):
    before = (damaged / "data.mdb").read_bytes()
    monkeypatch.setattr("os.statvfs", lambda _: SimpleNamespace(f_bavail=0, f_frsize=1))
    assert_refused(run("verify", damaged, "--repair"), "bytes of disk, 0 are free")
    assert (damaged / "data.mdb").read_bytes() == before
    assert not [path for path in damaged.iterdir() if path.name.startswith((".", DAMAGED))]
