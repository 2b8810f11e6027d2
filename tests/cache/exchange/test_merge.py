"""A merge adds what the target lacks, in order, and can be done again."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from exchange_samples import assert_refused, bird, contents

from cache import Entry, Rejection, Store, request_key
from cache.backend import index

ROOT = Path(__file__).parents[3]


@pytest.fixture
def two(tmp_path):
    """Two caches that share records 5 to 9."""
    for name, variants, codec in (("a", range(10), "jpeg"), ("b", range(5, 20), "png")):
        with Store(tmp_path / name, codec=codec) as store:
            store.put_many([bird(variant) for variant in variants])
    return tmp_path / "a", tmp_path / "b"


def test_a_merged_cache_has_every_key_once_and_the_first_of_two_records(two, tmp_path, run):
    status, out, err = run("merge", *two, "--into", tmp_path / "c", "--json")
    assert (status, json.loads(out)["done"], json.loads(out)["present"], err) == (0, 20, 5, "")
    assert contents(tmp_path / "c") == contents(two[1]) | contents(two[0])
    assert run("verify", tmp_path / "c")[0] == 0


def test_records_are_copied_and_not_encoded_anew(two, tmp_path, run):
    run("merge", *two, "--into", tmp_path / "c")
    with Store(two[0], readonly=True) as before, Store(tmp_path / "c", readonly=True) as after:
        for _, key in before.tail():
            old, new = before.inspect(key), after.inspect(key)
            assert (new.image_bytes, new.created, new.codec) == (
                old.image_bytes,
                old.created,
                old.codec,
            )


def test_the_order_of_arrival_is_kept(two, tmp_path, run):
    run("merge", *two, "--into", tmp_path / "c")
    keys = [bird(variant).request["variant"] for variant in range(20)]
    with Store(tmp_path / "c", readonly=True) as store:
        assert [store.inspect(key).request["variant"] for _, key in store.tail()] == keys


def test_a_cache_can_be_merged_into_one_that_has_records(two, tmp_path, run):
    expected = contents(two[0]) | contents(two[1])
    assert run("merge", two[0], "--into", two[1])[0] == 0
    assert contents(two[1]) == expected


def test_merging_changes_no_source(two, tmp_path, run):
    before = [contents(path) for path in two]
    run("merge", *two, "--into", tmp_path / "c")
    assert [contents(path) for path in two] == before


def key_of(variant):
    return request_key(bird(variant).request)


def beside(path):
    """Return rejections and service counts by key, and the saliency maps of two sources."""
    with Store(path, readonly=True) as store, store._environment.transaction() as (txn, tables):
        rows = [row for _, row in index.walk_log(txn, tables) if row.served]
        rejected = dict(txn.cursor(tables.rejected))
    maps = [store.get_saliency("v", source) for source in ("one", "two")]
    return rejected, {row.key: row.served for row in rows}, maps


@pytest.fixture
def annotated(two):
    """The two caches with rejections, service counts and saliency maps, some for the same key."""
    for path, rejected, served, maps in (
        (two[0], {30: "blank", 31: "blank", 12: "nan"}, {6: 1, 7: 5}, {"one": b"first"}),
        (two[1], {31: "nan", 3: "nan"}, {6: 4, 7: 2, 15: 1}, {"one": b"second", "two": b"two"}),
    ):
        with Store(path) as store:
            for variant, reason in rejected.items():
                store.reject(key_of(variant), bird(variant).request, Rejection(reason))
            store.note_served([key_of(v) for v, times in served.items() for _ in range(times)])
            store.put_saliency("v", maps)
    return two


def test_rejections_counts_and_maps_are_carried_over(annotated, tmp_path, run):
    status, out, err = run("merge", *annotated, "--into", tmp_path / "c", "--json")
    report = json.loads(out)
    assert (status, err) == (0, "")
    names = ("rejections", "served_counts", "saliency_maps")
    assert [report[name] for name in names] == [2, 4, 2]
    rejected, served, maps = beside(tmp_path / "c")
    first = beside(annotated[0])[0]
    assert rejected == {key: first[key] for key in (key_of(30), key_of(31))}
    assert served == {key_of(6): 4, key_of(7): 5, key_of(15): 1}
    assert maps == [b"first", b"two"]
    with Store(tmp_path / "c", readonly=True) as store:
        assert store.stats()["rejected_by_reason"] == {"blank": 2}
        assert store.verify().is_clean


def test_a_merge_done_again_changes_nothing(annotated, tmp_path, run):
    run("merge", *annotated, "--into", tmp_path / "c")
    before = contents(tmp_path / "c"), beside(tmp_path / "c")
    report = json.loads(run("merge", *annotated, "--into", tmp_path / "c", "--json")[1])
    assert (report["done"], report["rejections"], report["served_counts"]) == (0, 0, 0)
    assert (contents(tmp_path / "c"), beside(tmp_path / "c")) == before


def test_a_map_that_is_broken_is_left_out_and_named(annotated, tmp_path, run):
    store = Store(annotated[0])
    with store._environment.transaction(write=True) as (txn, tables):
        (name,) = txn.cursor(tables.saliency).iternext(values=False)
        txn.put(name, b"nothing", db=tables.saliency)
    status, out, _ = run("merge", *annotated, "--into", tmp_path / "c", "--json")
    report = json.loads(out)
    assert (status, report["broken"], report["saliency_maps"]) == (1, 1, 2)
    assert "its checksum does not match" in report["problems"][0]["problem"]


@pytest.mark.parametrize("command", ["merge", "import"])
def test_a_limit_met_on_the_way_keeps_the_batches_before_it(
    command, two, tmp_path, run, monkeypatch
):
    monkeypatch.setattr("cache.exchange.records._BATCH_RECORDS", 4)
    run("export", two[1], tmp_path / "out")
    with Store(two[1], readonly=True) as store:
        stats = store.stats()
    limit = 6 * stats["stored_bytes"] / stats["entries"] / 2**30
    arguments = {
        "merge": (two[1], "--into", tmp_path / "c"),
        "import": (tmp_path / "c", tmp_path / "out"),
    }[command]
    status, out, err = run(command, *arguments, "--max-gib", limit, "--json")
    report = json.loads(out)
    assert (status, report["done"], report["broken"], err) == (1, 4, 1, "")
    assert report["problems"][0]["name"] == "all the rest"
    assert "cache.max_gib must leave room" in report["problems"][0]["problem"]
    assert len(contents(tmp_path / "c")) == 4


def test_a_cache_is_not_merged_into_itself(two, run):
    result = run("merge", *two, "--into", two[1])
    assert_refused(result, "target must be another cache than the sources")


def test_one_bad_source_stops_a_merge_before_it_begins(two, tmp_path, run):
    assert_refused(
        run("merge", *two, tmp_path / "none", "--into", tmp_path / "c"), "cache path must be"
    )
    assert not (tmp_path / "c").exists()


@pytest.mark.slow
def test_a_killed_merge_leaves_a_whole_cache_and_is_finished_by_the_next(tmp_path, run):
    image = np.zeros((64, 64, 3), np.uint8)
    with Store(tmp_path / "a", codec="raw") as store:
        store.put_many([Entry({"variant": variant}, image) for variant in range(3000)])
    command = [sys.executable, "-m", "cache", "merge", "a", "--into", "c"]
    merging = subprocess.Popen(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)})
    while not is_growing(tmp_path / "c") and merging.poll() is None:
        time.sleep(0.001)
    merging.send_signal(signal.SIGKILL)
    merging.wait()
    with Store(tmp_path / "c", readonly=True) as store:
        assert 0 < len(store) < 3000
    assert run("verify", tmp_path / "c")[0] == 0
    status, out, _ = run("merge", tmp_path / "a", "--into", tmp_path / "c", "--json")
    report = json.loads(out)
    assert (status, report["done"] + report["present"]) == (0, 3000)
    assert report["present"] > 0
    assert contents(tmp_path / "c") == contents(tmp_path / "a")


def is_growing(path):
    try:
        with Store(path, readonly=True) as store:
            return len(store) > 0
    except ValueError:
        return False
