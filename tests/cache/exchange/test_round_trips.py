"""An exported cache, imported again, has the same records; the files are what others read."""

import csv
import json
import tarfile

import numpy as np
import PIL.Image
import pytest
from exchange_samples import contents

from cache import Entry, Store, content_digest
from cache.codecs import CODECS

LOSSLESS_FORMATS = ["folder", "diff-mix", "webdataset"]


@pytest.mark.parametrize("format", LOSSLESS_FORMATS)
def test_an_export_is_read_back_as_it_was(format, birds, tmp_path, run):
    assert run("export", birds, tmp_path / "out", "--format", format)[0] == 0
    assert run("import", tmp_path / "back", tmp_path / "out")[0] == 0
    assert contents(tmp_path / "back") == contents(birds)


@pytest.mark.parametrize("format", ["folder", "webdataset"])
def test_image_files_are_the_records_own_bytes_unless_raw(format, birds, tmp_path, run):
    run("export", birds, tmp_path / "out", "--format", format)
    run("import", tmp_path / "back", tmp_path / "out")
    with Store(birds, readonly=True) as before, Store(tmp_path / "back", readonly=True) as after:
        for _, key in before.tail():
            old, new = before.inspect(key), after.inspect(key)
            if old.codec.name == "raw":
                assert new.codec.name == "png"
            else:
                assert (new.codec.name, new.image_bytes) == (old.codec.name, old.image_bytes)


@pytest.mark.parametrize("codec", sorted(CODECS))
def test_every_codec_survives_a_round_trip(codec, make_entries, tmp_path, run):
    with Store(tmp_path / "a", codec=codec) as store:
        store.put_many(make_entries(3))
    for format in LOSSLESS_FORMATS:
        run(
            "export",
            tmp_path / "a",
            tmp_path / format,
            "--format",
            format,
            "--classes",
            classes(tmp_path),
        )
        if format != "diff-mix":  # these requests name no classes
            assert run("import", tmp_path / f"b{format}", tmp_path / format)[0] == 0
            assert contents(tmp_path / f"b{format}") == contents(tmp_path / "a")


def classes(folder):
    path = folder / "names.txt"
    path.write_text("wren\nrobin\nblack tern\nsnow bunting\n")
    return path


def test_a_folder_has_a_folder_a_class_and_one_row_an_image(birds, tmp_path, run):
    run("export", birds, tmp_path / "out", "--classes", classes(tmp_path))
    lines = (tmp_path / "out/metadata.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(rows) == 24
    for row in rows:
        request = json.loads(row["request"])
        name = ["wren", "robin", "black tern", "snow bunting"][request["target_label"]]
        assert row["file_name"].startswith(f"{name}/{row['key']}.")
        assert row["prompt"] == request["prompt"]
        assert (tmp_path / "out" / row["file_name"]).is_file()


def two_data_sets(path):
    """Write a cache with class 0 of two data sets."""
    with Store(path, codec="raw") as store:
        for number, (data_set, name) in enumerate([("digits-1a", "0"), ("pets-2b", "cat/tom")]):
            request = {"source_label": 0, "target_label": 0, "strength": 0.5, "n": number}
            classes = {"data_set": data_set, "source_class": name, "target_class": name}
            image = np.full((2, 2, 3), number, np.uint8)
            store.put_many([Entry(request, image, classes=classes)])
    return path


@pytest.mark.parametrize("format", LOSSLESS_FORMATS)
def test_an_export_is_of_one_data_set_and_keeps_its_names(format, tmp_path, run):
    cache = two_data_sets(tmp_path / "cache")
    status, _, err = run("export", cache, tmp_path / "out", "--format", format)
    assert status == 2
    assert "records must be of one data set, got digits-1a and pets-2b" in err
    options = ("--format", format, "--data-set", "pets")
    assert run("export", cache, tmp_path / "out", *options)[0] == 0
    assert run("import", tmp_path / "back", tmp_path / "out")[0] == 0
    with Store(tmp_path / "back", readonly=True) as store:
        assert list(store.stats()["by_data_set"]) == ["pets-2b"]
        assert store.stats()["by_data_set"]["pets-2b"]["target_classes"] == {"0 cat/tom": 1}
    files = {path.name for path in (tmp_path / "out").rglob("*")}
    assert {"folder": "cat_tom", "diff-mix": "cat_tom", "webdataset": "classes.txt"}[
        format
    ] in files
    if format == "webdataset":
        assert (tmp_path / "out/classes.txt").read_text() == "cat/tom\n"


def test_an_unknown_data_set_names_those_there_are(tmp_path, run):
    cache = two_data_sets(tmp_path / "cache")
    status, _, err = run("export", cache, tmp_path / "out", "--data-set", "birds")
    assert status == 2
    assert "data set must be one of digits-1a, pets-2b, got 'birds'" in err


def test_without_class_names_folders_are_labels(birds, tmp_path, run):
    run("export", birds, tmp_path / "out")
    folders = sorted(path.name for path in (tmp_path / "out").iterdir() if path.is_dir())
    assert folders == ["0000", "0001", "0002", "0003"]


def test_a_diff_mix_folder_is_what_its_scripts_read(birds, tmp_path, run):
    run("export", birds, tmp_path / "out", "--format", "diff-mix", "--classes", classes(tmp_path))
    with (tmp_path / "out/meta.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = ["wren", "robin", "black tern", "snow bunting"]
    assert sorted(int(row["Number"]) for row in rows) == list(range(24))
    for row in rows:
        request = json.loads(row["request"])
        assert row["First Directory"] == names[request["source_label"]]
        assert row["Second Directory"] == names[request["target_label"]]
        assert float(row["Strength"]) == request["strength"]
        source, target = (
            row[f"{side} Directory"].replace(" ", "_") for side in ("First", "Second")
        )
        number, strength = int(row["Number"]), row["Strength"]
        assert row["Path"] == f"{source}/{target}-{number:06d}-{strength}.png"
        with PIL.Image.open(tmp_path / "out/data" / row["Path"]) as image:
            assert (image.format, image.mode) == ("PNG", "RGB")


def test_records_without_two_classes_are_left_out_of_a_diff_mix_folder(
    birds, tmp_path, run, make_entries
):
    with Store(birds) as store:
        store.put_many(make_entries(2))
    status, out, _ = run("export", birds, tmp_path / "out", "--format", "diff-mix", "--json")
    report = json.loads(out)
    assert (status, report["done"], report["broken"]) == (1, 24, 2)
    assert "request must name source class, target class" in report["problems"][0]["problem"]


def test_shards_are_plain_tars_with_image_json_and_class(birds, tmp_path, run, monkeypatch):
    monkeypatch.setattr("cache.exchange.webdataset.RECORDS_PER_SHARD", 10)
    run("export", birds, tmp_path / "out", "--format", "webdataset", "--classes", classes(tmp_path))
    shards = sorted((tmp_path / "out").glob("*.tar"))
    assert [shard.name for shard in shards] == [f"shard-00000{n}.tar" for n in range(3)]
    with tarfile.open(shards[0]) as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar}
    assert len(members) == 30
    keys = {name.partition(".")[0] for name in members}
    with Store(birds, readonly=True) as store:
        for key in keys:
            stored = store.inspect(bytes.fromhex(key))
            assert int(members[f"{key}.cls"]) == stored.request["target_label"]
            assert json.loads(json.loads(members[f"{key}.json"])["request"]) == stored.request
    assert (tmp_path / "out/classes.txt").read_text() == classes(tmp_path).read_text()


def test_one_shard_can_be_imported_by_itself(birds, tmp_path, run):
    run("export", birds, tmp_path / "out", "--format", "webdataset")
    assert run("import", tmp_path / "back", tmp_path / "out/shard-000000.tar")[0] == 0
    assert contents(tmp_path / "back") == contents(birds)


def test_parquet_holds_the_metadata(birds, tmp_path, run):
    parquet = pytest.importorskip("pyarrow.parquet")
    run(
        "export",
        birds,
        tmp_path / "x.parquet",
        "--format",
        "parquet",
        "--classes",
        classes(tmp_path),
    )
    rows = parquet.read_table(tmp_path / "x.parquet").to_pylist()
    with Store(birds, readonly=True) as store:
        assert [row["key"] for row in rows] == [key.hex() for _, key in store.tail()]
        for row in rows:
            stored = store.inspect(bytes.fromhex(row["key"]))
            assert json.loads(row["request"]) == stored.request
            assert (row["strength"], row["created"]) == (stored.request["strength"], stored.created)
            assert (row["height"], row["width"], row["codec"]) == (9, 7, stored.codec.name)
            assert row["source_label"] == stored.request["source_label"]
    assert rows[2]["target_class"] == "robin"


def test_importing_again_adds_nothing(birds, tmp_path, run):
    run("export", birds, tmp_path / "out")
    run("import", tmp_path / "back", tmp_path / "out")
    status, out, _ = run("import", tmp_path / "back", tmp_path / "out", "--json")
    report = json.loads(out)
    assert (status, report["done"], report["present"]) == (0, 0, 24)


@pytest.mark.parametrize(
    ("options", "matches"),
    [
        (("--target-label", 2), lambda request: request["target_label"] == 2),
        (
            ("--source-label", 1, "--strength", 0.5),
            lambda r: r["source_label"] == 1 and r["strength"] == 0.5,
        ),
        (("--method", "diff_mix", "--limit", 5), lambda request: request["variant"] < 5),
    ],
)
def test_only_the_selected_records_are_exported(options, matches, birds, tmp_path, run):
    run("export", birds, tmp_path / "out", *options)
    run("import", tmp_path / "back", tmp_path / "out")
    expected = {k: v for k, v in contents(birds).items() if matches(v[0])}
    assert expected
    assert contents(tmp_path / "back") == expected


def test_a_request_with_extreme_values_keeps_its_key(tmp_path, run):
    request = {
        "method": "x",
        "target_label": 0,
        "a": 5e-324,
        "b": float("inf"),
        "c": 10**99,
        "d": "\N{GRINNING FACE}\u2028\r\n\x00\t",
        "e": 1.0,
        "f": 1,
        "g": True,
        "": None,
    }
    with Store(tmp_path / "a") as store:
        store.put_many([Entry(request, np.zeros((2, 2, 3), np.uint8))])
    for format in ("folder", "webdataset"):
        assert run("export", tmp_path / "a", tmp_path / format, "--format", format)[0] == 0
        assert run("import", tmp_path / f"b{format}", tmp_path / format)[0] == 0
        assert contents(tmp_path / f"b{format}") == contents(tmp_path / "a")


def test_the_digest_of_an_image_file_is_the_documented_one():
    assert content_digest(b"") == "cae66941d9efbd404e4d88758ea67670"
