"""Parquet and Arrow shards are read in place, whatever their pages, or refused in one line."""

import contextlib
import json
import sys

import numpy as np
import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest
from shard_samples import LONG_AGO_S, age, encoded, noise, table_of, write_parquet

from online_aug.data.settings import DataConfig
from online_aug.data.shards.content import ShardFile
from online_aug.data.shards.readers.parquet import read_parquet
from online_aug.data.shards.shard_set import ShardSet
from online_aug.data.sources import load_splits
from online_aug.data.timm_sets import timm_splits
from online_aug.errors import UserError

COUNT = 24
WAYS = {
    "as pyarrow writes": {},
    "as datasets writes": {"compression": "none", "use_dictionary": False},
    "dictionary, not packed": {"compression": "none"},
    "a dictionary that fills up": {"dictionary_pagesize_limit": 2000, "write_batch_size": 1},
    "small pages": {"use_dictionary": False, "data_page_size": 600, "write_batch_size": 2},
    "several row groups": {"row_group_size": 5},
    "pages of version 2": {"data_page_version": "2.0", "use_dictionary": False},
    "version 2, not packed": {"data_page_version": "2.0", "compression": "none"},
    "pages that do not shrink": {
        "data_page_version": "2.0",
        "data_page_size": 1,
        "write_batch_size": 1,
    },
    "zstd": {"compression": "zstd", "row_group_size": 7},
    "gzip": {"compression": "gzip"},
    "brotli": {"compression": "brotli"},
    "lz4": {"compression": "lz4"},
    "with checksums": {"write_page_checksum": True, "write_page_index": True},
}


def photos(count=COUNT):
    """Encoded images, some more than once, some that pack well and some larger than a fragment."""
    found = [encoded(pixels) for pixels in noise(count, 0, side=12)]
    found[3] = found[5] = found[1]
    found[7] = encoded(noise(1, 7, side=220)[0])  # 145 kB
    found[8] = encoded(np.zeros((400, 400, 3), np.uint8), "BMP")
    return found


def open_all(path, **settings):
    return load_splits(DataConfig(source=str(path), **settings)).train.parent


def refused(match, path, **settings):
    with pytest.raises(UserError, match=match) as caught:
        open_all(path, **settings)
    assert "\n" not in str(caught.value)


LABELS = [0, 1] * (COUNT // 2)


@pytest.mark.parametrize("options", WAYS.values(), ids=WAYS)
def test_every_image_is_read_at_its_place(tmp_path, options):
    images = photos()
    write_parquet(tmp_path / "0.parquet", images, LABELS, **options)
    found = open_all(tmp_path)
    assert [found.content(index) for index in range(COUNT)] == images
    assert found.labels.tolist() == LABELS
    assert found.class_names == ("cat", "dog")


def test_a_random_read_unpacks_little_of_a_large_page_of_photos(tmp_path):
    images = [encoded(pixels) for pixels in noise(20, 3, side=200)]
    write_parquet(tmp_path / "0.parquet", images, [0, 1] * 10, use_dictionary=False)
    content = read_parquet(tmp_path / "0.parquet", ShardFile("0.parquet"))
    assert content.codec == "snappy"
    assert content.blocks["unpacked"].max() <= 2**16
    assert content.blocks["unpacked"].sum() > sum(map(len, images))


def test_a_file_that_datasets_writes_is_read_with_its_names_and_splits(tmp_path):
    datasets = pytest.importorskip("datasets")
    images = photos()
    features = datasets.Features(
        {"img": datasets.Image(), "fine": datasets.ClassLabel(names=["ant", "bee"])}
    )
    rows = [{"bytes": image, "path": f"{k}.PNG"} for k, image in enumerate(images)]
    for split in ("train", "validation", "test"):
        table = datasets.Dataset.from_dict({"img": rows, "fine": LABELS}, features=features)
        (tmp_path / "data").mkdir(exist_ok=True)
        table.to_parquet(tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    splits = load_splits(DataConfig(source=str(tmp_path)))
    for found in (splits.train, splits.val, splits.test):
        assert [found.content(index) for index in range(COUNT)] == images
    assert splits.train.class_names == ("ant", "bee")
    assert splits.train.names[2] == "data/train-00000-of-00001.parquet/2/2.PNG"


def test_hfds_of_a_folder_reads_its_parquet_in_place(tmp_path):
    write_parquet(tmp_path / "pets" / "train.parquet", photos(), LABELS)
    splits = load_splits(DataConfig(source="hfds/pets", root=tmp_path))
    assert len(splits.train.parent) == COUNT


@pytest.mark.parametrize("as_dict", [False, True])
def test_a_set_saved_to_disk_is_read_in_place(tmp_path, as_dict):
    datasets = pytest.importorskip("datasets")
    images = photos()
    names = datasets.ClassLabel(names=["ant", "bee"])
    features = datasets.Features({"image": datasets.Image(), "label": names})
    rows = [{"bytes": image, "path": None} for image in images]
    saved = datasets.Dataset.from_dict({"image": rows, "label": LABELS}, features=features)
    saved = saved.select(range(COUNT - 1, -1, -1))
    if as_dict:
        datasets.DatasetDict(train=saved, test=saved).save_to_disk(
            tmp_path, num_shards={"train": 2, "test": 1}
        )
    else:
        saved.save_to_disk(tmp_path, num_shards=2)
    found = load_splits(DataConfig(source=str(tmp_path))).train.parent
    assert [found.content(index) for index in range(COUNT)] == images[::-1]


@pytest.mark.slow
def test_a_set_of_the_hub_is_read_from_its_arrow_files(tmp_path):
    pytest.importorskip("datasets")
    for split in ("train", "test"):  # datasets takes a folder for a repository of the hub
        write_parquet(tmp_path / "pets" / f"{split}.parquet", photos(), LABELS)
    splits = timm_splits(DataConfig(source=f"hfds/{tmp_path}/pets", root=tmp_path / "hub"), None)
    assert isinstance(splits["train"], ShardSet)
    assert splits["train"].shards[0].file.name.endswith(".arrow")
    for found in splits.values():
        assert [found.content(index) for index in range(COUNT)] == photos()
        assert found.class_names == ("cat", "dog")


def test_a_plain_column_of_bytes_and_labels_in_words_are_read(tmp_path):
    words = ["yak", "ant"] * (COUNT // 2)
    for number in range(2):
        turned = words[number:] + words[:number]  # each shard meets them in its own order
        table = pyarrow.table(
            {"img": pyarrow.array(photos(), pyarrow.large_binary()), "label": turned}
        )
        pyarrow.parquet.write_table(table, tmp_path / f"{number}.parquet")
    found = open_all(tmp_path)
    assert found.class_names == ("ant", "yak")
    assert found.labels.tolist() == [1, 0] * (COUNT // 2) + [0, 1] * (COUNT // 2)
    assert [found.content(COUNT + index) for index in range(COUNT)] == photos()


def test_rows_without_an_image_are_left_out_and_counted(tmp_path, caplog):
    images = photos()
    images[2] = images[9] = None
    write_parquet(tmp_path / "0.parquet", images, LABELS, row_group_size=4)
    found = open_all(tmp_path)
    expected = [image for image in images if image is not None]
    assert [found.content(index) for index in range(COUNT - 2)] == expected
    assert "2 samples of" in caplog.text


def test_an_image_that_is_only_a_path_is_refused(tmp_path):
    rows = [{"bytes": None, "path": "cat.png"}]
    kind = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
    table = pyarrow.table({"image": pyarrow.array(rows, kind), "label": [0]})
    pyarrow.parquet.write_table(table, tmp_path / "0.parquet")
    refused(r"row 0 of .*0\.parquet only names cat\.png: embed the images", tmp_path)


def test_an_unknown_column_is_refused_with_the_known_ones(tmp_path):
    write_parquet(tmp_path / "0.parquet", photos(), LABELS)
    known = "its columns are image, label"
    refused(
        f"data.image_key must be a column .* got picture; {known}", tmp_path, image_key="picture"
    )
    refused(f"data.label_key must be a column .* got kind; {known}", tmp_path, label_key="kind")
    refused("image_key must be a column of encoded images, got label", tmp_path, image_key="label")


def test_a_file_without_images_or_without_labels_is_refused(tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"a": [1], "label": [0]}), tmp_path / "0.parquet")
    refused("must have a column of images, got the columns a, label", tmp_path)
    table = table_of(pyarrow, photos(), LABELS, None).drop_columns(["label"])
    pyarrow.parquet.write_table(table, tmp_path / "0.parquet")
    refused("must have a column of labels, got the columns image; data.label_key", tmp_path)


def test_one_of_several_columns_must_be_chosen(tmp_path):
    table = table_of(pyarrow, photos(), LABELS, ["cat", "dog"])
    metadata = json.loads(table.schema.metadata[b"huggingface"])
    features = metadata["info"]["features"]
    features |= {"fine": features.pop("label"), "coarse": {"_type": "ClassLabel", "names": ["all"]}}
    table = table.rename_columns(["image", "fine"]).append_column("coarse", [[0] * COUNT])
    table = table.replace_schema_metadata({"huggingface": json.dumps(metadata)})
    pyarrow.parquet.write_table(table, tmp_path / "0.parquet")
    refused("data.label_key must say which column .* several may be: fine, coarse", tmp_path)
    assert open_all(tmp_path, label_key="fine").class_names == ("cat", "dog")


@pytest.mark.parametrize("label", [2, 7])
def test_a_label_beyond_the_classes_is_refused_with_the_range(tmp_path, label):
    write_parquet(tmp_path / "0.parquet", photos(), [*LABELS[:-1], label])
    refused(rf"\(train\) must be whole numbers from 0 to 1, .* got {label}$", tmp_path)


@pytest.mark.parametrize("labels", [[None] * COUNT, [[0, 1]] * COUNT, [0.5] * COUNT])
def test_a_label_that_is_no_single_class_is_refused(tmp_path, labels):
    write_parquet(tmp_path / "0.parquet", photos(), labels)
    refused(r"label of 0 in .*0\.parquet must be one class as a whole number", tmp_path)


def test_shards_with_other_classes_are_refused(tmp_path):
    write_parquet(tmp_path / "0.parquet", photos(), LABELS)
    write_parquet(tmp_path / "1.parquet", photos(), LABELS, names=("dog", "cat"))
    refused("must name the same classes, got 2 different lists", tmp_path)


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_a_file_that_was_cut_is_refused(tmp_path, kind):
    path = tmp_path / f"0.{kind}"
    if kind == "parquet":
        write_parquet(path, photos(), LABELS)
    else:
        table = table_of(pyarrow, photos(), LABELS, ["cat", "dog"])
        with pyarrow.ipc.new_stream(path, table.schema) as stream:
            stream.write_table(table)
    path.write_bytes(path.read_bytes()[:-900])
    refused(rf"0\.{kind} must be a whole {kind.capitalize()} file", tmp_path)


def test_an_encoding_that_needs_all_values_before_is_refused(tmp_path):
    options = {"use_dictionary": False, "column_encoding": {"image.bytes": "DELTA_BYTE_ARRAY"}}
    write_parquet(tmp_path / "0.parquet", photos(), LABELS, **options)
    refused("must be stored plain or by a dictionary, got encoding 7: write it again", tmp_path)


def test_shards_of_two_kinds_are_refused(tmp_path):
    write_parquet(tmp_path / "0.parquet", photos(), LABELS)
    (tmp_path / "1.tar").write_bytes(b"")
    refused(r"must be of one kind, got \.parquet and \.tar", tmp_path)


def test_a_missing_library_is_named_with_its_extra(tmp_path, monkeypatch):
    from online_aug.data.shards.content import import_arrow

    write_parquet(tmp_path / "0.parquet", photos(), LABELS)
    monkeypatch.setitem(sys.modules, "pyarrow.ipc", None)
    import_arrow.cache_clear()
    refused(r"need the package pyarrow; pip install 'online-aug\[shards\]'", tmp_path)
    import_arrow.cache_clear()


def test_a_file_without_rows_is_refused(tmp_path):
    write_parquet(tmp_path / "0.parquet", [], [])
    age(tmp_path / "0.parquet")
    assert (tmp_path / "0.parquet").stat().st_mtime == LONG_AGO_S
    refused("must hold labelled images, got an empty shard", tmp_path)


@pytest.mark.parametrize("at", range(4, 30, 2))
def test_a_damaged_header_of_a_page_is_refused_or_changes_nothing(tmp_path, at):
    images = photos()
    write_parquet(tmp_path / "0.parquet", images, LABELS, compression="none", use_dictionary=False)
    content = bytearray((tmp_path / "0.parquet").read_bytes())
    content[at] ^= 0xFF
    (tmp_path / "0.parquet").write_bytes(content)
    found = None
    with contextlib.suppress(UserError):
        found = open_all(tmp_path)
    assert found is None or [found.content(index) for index in range(COUNT)] == images
