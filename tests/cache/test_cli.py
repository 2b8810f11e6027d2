import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cache_samples import overwrite

from cache import Entry, Store, record, request_key
from cache.__main__ import main
from cache.commands import show


@pytest.fixture
def filled(store, make_entries):
    store.put_many(make_entries(30))
    store.reject(request_key({"x": 1}), {"x": 1}, "blank")
    store.close()
    return store


def run(capsys, *arguments):
    status = main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def test_stats_are_the_stores_own_as_json(filled, capsys):
    status, out, err = run(capsys, "stats", filled.path, "--json")
    assert (status, err) == (0, "")
    printed = json.loads(out)
    assert [recipe["entries"] for recipe in printed.pop("by_recipe")] == [30]
    assert printed == filled.stats()


def test_stats_are_readable(filled, capsys):
    status, out, _ = run(capsys, "stats", filled.path)
    assert status == 0
    rows = {line.strip() for line in out.splitlines()}
    for expected in ("method demo", "strength 0.50", "rejected as blank", "made last hour"):
        assert any(row.startswith(f"{expected} ") for row in rows)
    assert any(row.startswith("recipe ") and "method=demo" in row for row in rows)


def test_list_ends_with_the_newest(filled, capsys):
    _, out, _ = run(capsys, "list", filled.path, "--json")
    rows = json.loads(out)
    assert [row["position"] for row in rows] == list(range(11, 31))
    assert rows[-1]["request"]["variant"] == 29
    assert (rows[-1]["width"], rows[-1]["height"], rows[-1]["codec"]) == (5, 4, "webp_lossless")


def test_list_starts_where_it_is_told(filled, capsys):
    _, out, _ = run(capsys, "list", filled.path, "--after", 3, "--limit", 2, "--json")
    assert [row["position"] for row in json.loads(out)] == [4, 5]


def test_list_with_a_filter_ends_with_the_newest_that_match(filled, capsys):
    with Store(filled.path) as store:
        store.put_many(
            [Entry({"method": "b", "v": v}, np.zeros((2, 2, 3), np.uint8)) for v in "ab"]
        )
        store.put_many([Entry({"method": "demo", "late": 1}, np.zeros((2, 2, 3), np.uint8))])
    _, out, _ = run(capsys, "list", filled.path, "--method", "demo", "--limit", 3, "--json")
    assert [row["position"] for row in json.loads(out)] == [29, 30, 33]
    _, out, _ = run(capsys, "list", filled.path, "--method", "b")
    assert [line.split()[0] for line in out.splitlines()] == ["position", "31", "32"]


def test_list_prints_a_line_before_it_looks_for_the_next(capsys):
    def rows():
        yield {"position": 1, "key": "ab", "problem": "first"}
        assert "first" in capsys.readouterr().out
        yield {"position": 2, "key": "cd", "problem": "second"}

    show._print_rows(rows())
    assert capsys.readouterr().out.endswith("second\n")


def test_every_command_copes_with_an_empty_cache(store, capsys):
    store.open().close()
    assert run(capsys, "list", store.path) == (0, "no records\n", "")
    assert run(capsys, "list", store.path, "--json") == (0, "[]\n", "")
    assert run(capsys, "list", store.path, "--method", "none") == (0, "no records\n", "")
    assert run(capsys, "verify", store.path) == (0, "0 records, 0 B: all well\n", "")
    status, out, err = run(capsys, "stats", store.path)
    assert (status, err) == (0, "")
    assert out.splitlines()[1].split() == ["entries", "0"]
    status, out, err = run(capsys, "evict", store.path, "--count", 3)
    assert (status, err) == (0, "")
    assert [line.split() for line in out.splitlines()][0] == ["evicted", "0"]


def test_a_request_cannot_control_the_terminal(store, capsys):
    store.put_many([Entry({"prompt": "[red]a\x1b[2Jb"}, np.zeros((4, 4, 3), np.uint8))])
    _, out, _ = run(capsys, "list", store.path)
    assert "\x1b" not in out
    assert "[red]a" in out


def test_verify_of_a_whole_cache_succeeds(filled, capsys):
    status, out, _ = run(capsys, "verify", filled.path)
    assert status == 0
    assert out.startswith("30 records")
    assert out.endswith("all well\n")


def test_verify_of_a_broken_cache_fails_and_says_where(filled, capsys, monkeypatch):
    monkeypatch.setattr(record, "checksum", lambda *_: bytes(4))
    status, out, _ = run(capsys, "verify", filled.path)
    assert status == 1
    assert out.count("is corrupt: its checksum does not match\n") == 20
    assert "and 10 more" in out
    status, out, _ = run(capsys, "verify", filled.path, "--json")
    assert status == 1
    assert len(json.loads(out)["problems"]) == 30


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["polish", "x"], "invalid choice: 'polish'"),
        (["stats"], "the following arguments are required: PATH"),
        (["list", "x", "--limit", "-1"], "must be a whole number from 0, got '-1'"),
        (["stats", "x", "--jsno"], "unrecognized arguments: --jsno"),
    ],
)
def test_a_bad_command_line_is_one_line_and_status_two(arguments, message, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    err = capsys.readouterr().err
    assert caught.value.code == 2
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("command", ["stats", "verify", "list"])
def test_a_path_without_a_cache_is_one_line_and_status_two(command, tmp_path, capsys):
    status, out, err = run(capsys, command, tmp_path)
    assert (status, out) == (2, "")
    assert err.startswith("error: cache path must be a directory with a cache")
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["stats", "verify", "list"])
def test_a_cache_of_another_schema_is_one_line_and_status_two(command, filled, capsys):
    overwrite(filled.path, b"meta", b"n:schema", lambda _: (2).to_bytes(8, "big"))
    status, out, err = run(capsys, command, filled.path)
    assert (status, out) == (2, "")
    assert err.startswith("error: cache schema must be 3, got 2 at")
    assert err.count("\n") == 1


def test_it_runs_as_a_module_and_loads_no_torch(filled):
    command = [sys.executable, "-X", "importtime", "-m", "cache", "stats", str(filled.path)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    assert "entries" in done.stdout
    loaded = {
        line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()
    }
    assert {"cache", "lmdb"} <= loaded
    assert not loaded & {"online_aug", "torch"}
