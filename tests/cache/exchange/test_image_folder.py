"""An exported folder is a data set: Hugging Face's library reads its images with all columns."""

import json

import numpy as np
import pytest
from exchange_samples import contents
from hypothesis import given
from hypothesis import strategies as st

from cache import Entry, Store
from cache.codecs import CODECS
from cache.exchange.metadata import ClassNames
from cache.record import Draft, parse
from online_aug.labels import translation_label


def fill(path, fields, scores=lambda n: {}):
    """Write a cache with one image for each request, of the classes `7` and `NA`."""
    names = ["7", "NA"]  # a table must not read them as a number and as nothing
    entries = []
    for number, field in enumerate(fields):
        request = {"method": "m", "source_label": 0, "target_label": number % 2, "n": number}
        classes = {"data_set": "d-1", "source_class": "7", "target_class": names[number % 2]}
        image = np.random.default_rng(number).integers(0, 256, (5, 4, 3), dtype=np.uint8)
        entries.append(Entry(request | field, image, scores(number), classes))
    with Store(path, codec="png", durability="process") as store:
        store.put_many(entries)
    return path


def load(folder, tmp_path):
    datasets = pytest.importorskip("datasets")
    loaded = datasets.load_dataset(
        "imagefolder", data_dir=str(folder), split="train", cache_dir=str(tmp_path / "hf")
    )
    return {row["key"]: row for row in loaded}, loaded


def test_the_datasets_library_reads_images_and_columns(tmp_path, run):
    fields = [{"strength": 0.25, "prompt": f"a bird\n{n}"} for n in range(4)]
    cache = fill(tmp_path / "c", fields, lambda n: {"clip": n / 4})
    assert run("export", cache, tmp_path / "out", "--gamma", 0.5)[0] == 0
    rows, loaded = load(tmp_path / "out", tmp_path)
    types = {name: getattr(kind, "dtype", None) for name, kind in loaded.features.items()}
    assert types["strength"] == types["score_clip"] == types["created"] == "float64"
    assert types["source_label"] == types["target_label"] == "int64"
    assert loaded.class_encode_column("label").features["label"].names == ["7", "NA"]
    with Store(cache, readonly=True) as store:
        assert len(rows) == len(store) == 4
        for _, key in store.tail():
            record, row = store.get(key), rows[key.hex()]
            assert (np.asarray(row["image"]) == record.image).all()
            assert json.loads(row["request"]) == record.request
            assert row["score_clip"] == record.scores["clip"]
            assert row["label"] == row["target_class"] == record.classes["target_class"]
            assert (row["method"], row["strength"]) == ("m", 0.25)
            assert row["prompt"] == record.request["prompt"]
            label = {"7": 1.0} if row["label"] == "7" else {"7": 0.5, "NA": 0.5}
            assert json.loads(row["soft_label"]) == label


def test_a_value_that_only_late_rows_have_is_read(tmp_path, run):
    long = [{"prompt": "x" * 10**6}] * 12  # the library looks at 10 MB to find the types
    cache = fill(tmp_path / "c", [*long, {"strength": 0.5}], lambda n: {"clip": 0.5} if n else {})
    run("export", cache, tmp_path / "out")
    rows, _ = load(tmp_path / "out", tmp_path)
    assert [row["strength"] for row in rows.values()].count(None) == 12
    assert [row["score_clip"] for row in rows.values()].count(None) == 1


def test_values_that_no_table_can_hold_are_in_the_request_only(tmp_path, run):
    fields = [{"strength": "strong"}, {"strength": float("inf")}]
    cache = fill(tmp_path / "c", fields, lambda n: {"clip": float("inf")})
    run("export", cache, tmp_path / "out")
    rows = [json.loads(line) for line in (tmp_path / "out/metadata.jsonl").open()]
    assert all("strength" not in row and "score_clip" not in row for row in rows)
    assert run("import", tmp_path / "back", tmp_path / "out")[0] == 0
    assert contents(tmp_path / "back") == contents(cache)


def test_a_row_that_is_no_json_costs_itself_only(tmp_path, run):
    cache = fill(tmp_path / "c", [{}, {}, {}])
    run("export", cache, tmp_path / "out")
    first, _, third = (tmp_path / "out/metadata.jsonl").read_text().splitlines()
    (tmp_path / "out/metadata.jsonl").write_text(f"{first}\n[1]\n{third}\n{{\n")
    status, out, _ = run("import", tmp_path / "back", tmp_path / "out", "--json")
    report = json.loads(out)
    assert (status, report["done"], report["broken"]) == (1, 2, 2)
    assert report["problems"][0]["name"] == "metadata.jsonl, line 2"
    assert report["problems"][0]["problem"] == "row must be a JSON object"


def record_of(request, classes):
    draft = Draft(Entry(request, np.zeros((1, 1, 3), np.uint8), {}, classes), CODECS["png"], 0.0)
    return parse(draft.key, draft.seal(1))


@given(st.floats(0.01, 1), st.floats(0.1, 3))
def test_a_soft_label_between_classes_is_that_of_training(strength, gamma):
    request = {"source_label": 0, "target_label": 1, "strength": strength}
    label = ClassNames(["a", "b"], gamma=gamma).soft_label_of(record_of(request, {}))
    expected = translation_label(0, 1, strength, num_classes=2, gamma=gamma)
    assert list(label) == ["a", "b"]
    assert np.allclose(list(label.values()), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("request_", "gamma", "label"),
    [
        ({"source_label": 1, "target_label": 1}, None, {"b": 1.0}),
        ({"source_label": 0, "target_label": 1, "strength": 0.5}, None, None),
        ({"source_label": 0, "target_label": 1}, 0.5, None),
        ({"source_label": 0, "target_label": 1, "strength": 2.0}, 0.5, None),
        ({"target_label": 1}, 0.5, None),
        ({}, 0.5, None),
    ],
)
def test_a_soft_label_is_left_open_if_it_is_not_defined(request_, gamma, label):
    assert ClassNames(["a", "b"], gamma=gamma).soft_label_of(record_of(request_, {})) == label
