"""`evict`, `compact` and `verify`: what goes, what stays, what is found."""

import json
import os

import numpy as np
import pytest
from cache_samples import overwrite
from exchange_samples import assert_refused, bird, contents

from cache import Entry, Owner, Store, record, request_key
from cache.backend import opening


def recipes(path):
    with Store(path, readonly=True) as store:
        return {recipe.fields["method"]: recipe.id.hex() for recipe in store.recipes()}


@pytest.fixture
def two_recipes(birds, make_entries):
    with Store(birds) as store:
        store.put_many(make_entries(3))
    return birds


def variants(path):
    return [request["variant"] for request, *_ in contents(path).values()]


def test_the_oldest_go_first(birds, run):
    status, out, _ = run("evict", birds, "--count", 20, "--json")
    assert status == 0
    assert json.loads(out)["evicted"] == 20
    assert sorted(variants(birds)) == [20, 21, 22, 23]
    assert run("verify", birds)[0] == 0


def test_a_cache_is_brought_down_to_a_size(birds, run):
    with Store(birds, readonly=True) as store:
        half = store.stats()["stored_bytes"] / 2
    assert run("evict", birds, "--to-gib", half / 2**30)[0] == 0
    with Store(birds, readonly=True) as store:
        assert 0 < store.stats()["stored_bytes"] <= half
        assert 23 in variants(birds)


def test_served_records_go_first_when_asked_for(birds, run):
    served = [request_key(bird(variant).request) for variant in (7, 22)]
    with Store(birds) as store:
        store.note_served(served * 3)
    run("evict", birds, "--served", 3, "--count", 2)
    assert sorted(set(range(24)) - set(variants(birds))) == [7, 22]


def test_one_recipe_can_be_evicted(two_recipes, run):
    run("evict", two_recipes, "--recipe", recipes(two_recipes)["demo"][:8])
    assert len(contents(two_recipes)) == 24
    assert set(recipes(two_recipes)) == {"diff_mix"}


def test_one_record_can_be_evicted(birds, run):
    key = request_key(bird(5).request)
    run("evict", birds, "--key", key.hex()[:10])
    assert key not in contents(birds)
    assert len(contents(birds)) == 23


def test_pinned_records_stay(birds, run):
    key = request_key(bird(0).request)
    with Store(birds) as store:
        store.pin([key], Owner.current())
    run("evict", birds, "--count", 100)
    assert list(contents(birds)) == [key]


def test_compact_gives_space_back_and_keeps_every_record(tmp_path, run):
    images = np.random.default_rng(0).integers(0, 256, (200, 64, 64, 3), np.uint8)
    with Store(tmp_path / "c", codec="raw") as store:
        store.put_many([Entry({"n": n}, image) for n, image in enumerate(images)])
    run("evict", tmp_path / "c", "--count", 150)
    before = contents(tmp_path / "c")
    size = (tmp_path / "c/data.mdb").stat().st_size
    status, out, _ = run("compact", tmp_path / "c", "--json")
    assert status == 0
    assert json.loads(out)["freed_bytes"] > size / 2
    assert (tmp_path / "c/data.mdb").stat().st_size < size / 2
    assert contents(tmp_path / "c") == before
    assert run("verify", tmp_path / "c")[0] == 0


def test_verify_of_a_whole_cache_succeeds(birds, run):
    status, out, _ = run("verify", birds)
    assert status == 0
    assert out.startswith("24 records")
    assert out.endswith("all well\n")


def test_verify_of_a_broken_cache_fails_and_says_where(birds, run, monkeypatch):
    monkeypatch.setattr(record, "checksum", lambda *_: bytes(4))
    status, out, _ = run("verify", birds)
    assert status == 1
    assert out.count("is corrupt: its checksum does not match\n") == 20
    assert "and 4 more" in out
    status, out, _ = run("verify", birds, "--json")
    assert status == 1
    assert len(json.loads(out)["problems"]) == 24


def test_repair_drops_what_is_broken_and_nothing_else(birds, run):
    key = request_key(bird(3).request)
    before = contents(birds)
    overwrite(birds, b"records", key, lambda value: value[:-1] + bytes([value[-1] ^ 1]))
    assert run("verify", birds)[0] == 1
    status, out, _ = run("verify", birds, "--repair", "--json")
    assert (status, json.loads(out)["dropped"]) == (0, [key.hex()])
    assert run("verify", birds)[0] == 0
    before.pop(key)
    assert contents(birds) == before


def test_a_damaged_page_is_found_although_the_file_looks_untouched(birds, run):
    file = birds / "data.mdb"
    before, content = file.stat(), bytearray(file.read_bytes())
    content[2 * 4096 :] = bytes(len(content) - 2 * 4096)  # all but the pages that name the roots
    file.write_bytes(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    for options in ((), ("--repair",)):
        result = run("verify", birds, *options)
        assert_refused(result, "is damaged: ")
        assert "put back a copy of data.mdb, or delete the cache" in result[2]
    assert file.read_bytes() == content


def test_a_file_that_is_not_lmdb_s_is_refused_and_stays_as_it_is(tmp_path, run):
    (tmp_path / "data.mdb").write_bytes(b"OARC" * 5000)
    assert_refused(run("verify", tmp_path, "--repair"), "must hold a cache")
    assert (tmp_path / "data.mdb").read_bytes() == b"OARC" * 5000


def test_verify_examines_the_pages_of_a_copy_once(birds, run, monkeypatch):
    (birds / "sound").unlink()
    examined, examine = [], opening._examine
    monkeypatch.setattr(opening, "_examine", lambda path: (examined.append(path), examine(path))[1])
    assert run("verify", birds)[0] == 0
    assert examined == [birds]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("evict",), "evict must be told how much: give --to-gib"),
        (("evict", "--to-gib", "0.0000001"), "--to-gib must hold at least one record, got 1e-07"),
        (("evict", "--to-gib", "0"), "must be positive, got '0'"),
        (("evict", "--to-gib", "inf"), "must be a number, got 'inf'"),
        (("evict", "--recipe", "zz"), "recipe must be the start of one identifier that stats"),
        (("evict", "--key", ""), "key must be one record's, got '' which several have"),
        (("evict", "--key", "0123456789"), "which none have"),
        (("evict", "--key", "1", "--served", "1"), "not allowed with argument"),
        (("list", "--recipe", "zz"), "recipe must be the start of one identifier"),
    ],
)
def test_bad_input_changes_nothing(arguments, message, birds, run):
    before = contents(birds)
    assert_refused(run(arguments[0], birds, *arguments[1:]), message)
    assert contents(birds) == before


@pytest.mark.parametrize("command", [("evict", "--count", 1), ("compact",), ("verify", "--repair")])
def test_commands_that_change_a_cache_do_not_make_one(command, tmp_path, run):
    result = run(command[0], tmp_path / "none", *command[1:])
    assert_refused(result, "cache path must be a directory with a cache")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("gib", "message"),
    [("0.0000001", "cache.max_gib must hold at least one record"), ("0.00001", "must leave room")],
)
def test_a_limit_that_is_too_small_stops_import_and_merge(gib, message, birds, tmp_path, run):
    run("export", birds, tmp_path / "out")
    for command in (
        ("import", tmp_path / "c", tmp_path / "out"),
        ("merge", birds, "--into", tmp_path / "d"),
    ):
        assert_refused(run(*command, "--max-gib", gib), message)
    assert {path.name for path in tmp_path.iterdir()} == {"birds", "out"}


def test_a_limit_leaves_a_folder_that_was_there_as_it_was(birds, tmp_path, run):
    (tmp_path / "c").mkdir()
    arguments = ("merge", birds, "--into", tmp_path / "c", "--max-gib", "0.00001")
    assert_refused(run(*arguments), "must leave room")
    assert list((tmp_path / "c").iterdir()) == []


def test_a_limit_leaves_an_empty_cache_that_was_there(birds, tmp_path, run):
    Store(tmp_path / "c").open().close()
    arguments = ("merge", birds, "--into", tmp_path / "c", "--max-gib", "0.00001")
    assert_refused(run(*arguments), "must leave room")
    assert contents(tmp_path / "c") == {}
