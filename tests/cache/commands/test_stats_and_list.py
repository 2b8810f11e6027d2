"""`stats` and `list`: what is printed, for people and for programs."""

import json

import numpy as np
import pytest

from cache import Entry, Rejection, Store, request_key
from cache.commands import show

BLACK = np.zeros((2, 2, 3), np.uint8)


@pytest.fixture
def thirty(store, make_entries):
    """The directory of a cache of thirty records and a rejection."""
    store.put_many(make_entries(30))
    store.reject(request_key({"x": 1}), {"x": 1}, Rejection("blank"))
    store.close()
    return store.path


def test_stats_are_the_stores_own_as_json(thirty, run):
    status, out, err = run("stats", thirty, "--json")
    assert (status, err) == (0, "")
    printed = json.loads(out)
    assert [recipe["entries"] for recipe in printed.pop("by_recipe")] == [30]
    with Store(thirty, readonly=True) as store:
        assert printed == store.stats()


def test_stats_are_readable(thirty, run):
    status, out, _ = run("stats", thirty)
    assert status == 0
    rows = {line.strip() for line in out.splitlines()}
    for expected in ("method demo", "strength 0.50", "rejected as blank", "made last hour"):
        assert any(row.startswith(f"{expected} ") for row in rows)
    assert any(row.startswith("recipe ") and "method=demo" in row for row in rows)
    assert all(line == line.rstrip() for line in out.splitlines())


def test_list_ends_with_the_newest(thirty, run):
    _, out, _ = run("list", thirty, "--json")
    rows = json.loads(out)
    assert [row["position"] for row in rows] == list(range(11, 31))
    assert rows[-1]["request"]["variant"] == 29
    assert (rows[-1]["width"], rows[-1]["height"], rows[-1]["codec"]) == (5, 4, "webp_lossless")


def test_list_starts_behind_a_position(thirty, run):
    _, out, _ = run("list", thirty, "--after", 3, "--limit", 2, "--json")
    assert [row["position"] for row in json.loads(out)] == [4, 5]


def test_list_with_a_filter_ends_with_the_newest_that_match(thirty, run):
    with Store(thirty) as store:
        store.put_many([Entry({"method": "b", "v": v}, BLACK) for v in "ab"])
        store.put_many([Entry({"method": "demo", "late": 1}, BLACK)])
    _, out, _ = run("list", thirty, "--method", "demo", "--limit", 3, "--json")
    assert [row["position"] for row in json.loads(out)] == [29, 30, 33]
    _, out, _ = run("list", thirty, "--method", "b")
    assert [line.split()[0] for line in out.splitlines()] == ["position", "31", "32"]


@pytest.mark.parametrize("options", [("--target-label", "2"), ("--strength", "0.7")])
def test_list_filters_by_class_and_strength(options, birds, run):
    _, out, _ = run("list", birds, *options, "--limit", 3, "--json")
    _, all_out, _ = run("list", birds, *options, "--limit", 100, "--json")
    rows, all_rows = json.loads(out), json.loads(all_out)
    assert rows == all_rows[-3:]
    assert len(all_rows) in (6, 8)


def test_list_filters_by_recipe(birds, make_entries, run):
    with Store(birds) as store:
        store.put_many(make_entries(3))
        (recipe,) = (r.id.hex() for r in store.recipes() if r.fields["method"] == "demo")
    _, out, _ = run("list", birds, "--recipe", recipe, "--json")
    assert [row["request"]["method"] for row in json.loads(out)] == ["demo"] * 3


def test_list_prints_a_line_before_it_looks_for_the_next(capsys):
    def rows():
        yield {"position": 1, "key": "ab", "problem": "first"}
        assert "first" in capsys.readouterr().out
        yield {"position": 2, "key": "cd", "problem": "second"}

    show._print_rows(rows())
    assert capsys.readouterr().out.endswith("second\n")


def test_every_command_copes_with_an_empty_cache(store, run):
    store.open().close()
    assert run("list", store.path) == (0, "no records\n", "")
    assert run("list", store.path, "--json") == (0, "[]\n", "")
    assert run("list", store.path, "--method", "none") == (0, "no records\n", "")
    assert run("verify", store.path) == (0, "0 records, 0 B: all well\n", "")
    status, out, err = run("stats", store.path)
    assert (status, err) == (0, "")
    assert out.splitlines()[1].split() == ["entries", "0"]
    status, out, err = run("evict", store.path, "--count", 3)
    assert (status, err) == (0, "")
    assert out.splitlines()[0].split() == ["evicted", "0"]


def test_a_request_cannot_control_the_terminal(store, run):
    store.put_many([Entry({"prompt": "[red]a\x1b[2Jb"}, BLACK)])
    _, out, _ = run("list", store.path)
    assert "\x1b" not in out
    assert "[red]a" in out
