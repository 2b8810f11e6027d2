"""WebDataset's shards are read in place, with every pixel and label, or refused in one line."""

import gzip
import json
import tarfile

import numpy as np
import pytest
from shard_samples import encoded, members_of, noise, pairs_of, write_tar, write_wds

from online_aug.data.image_sets import digests_of, file_names_of, size_of
from online_aug.data.images import BadImageError
from online_aug.data.settings import DataConfig
from online_aug.data.sources import load_splits
from online_aug.errors import UserError

LABELS = {"train": [2, 0, 1, 1, 0, 2], "validation": [1, 0], "test": [0, 2, 1]}


def open_wds(root, **settings):
    return load_splits(DataConfig(source="wds/pets", root=root, **settings))


def open_tar(path, **settings):
    return load_splits(DataConfig(source=str(path), **settings)).train


def sample(key, pixels, label):
    return [(f"{key}.png", encoded(pixels)), (f"{key}.cls", str(label).encode())]


def refused(match, path, **settings):
    with pytest.raises(UserError, match=match) as caught:
        open_tar(path, **settings)
    assert "\n" not in str(caught.value)


def write_one(path, extra=(), count=20):
    write_tar(path, [*members_of(noise(count, 0), [0, 1] * (count // 2)), *extra])


def test_splits_are_those_of_timm_s_file_with_every_pixel_and_label(tmp_path):
    made = write_wds(tmp_path, LABELS)
    splits = open_wds(tmp_path)
    for ours, theirs in (("train", "train"), ("val", "validation"), ("test", "test")):
        expected = zip(made[theirs], LABELS[theirs], strict=True)
        found = pairs_of(getattr(splits, ours))
        assert found == [(pixels.tobytes(), label) for pixels, label in expected]


def test_images_and_labels_are_those_that_timm_streams(tmp_path):
    from timm.data.dataset_factory import create_dataset

    write_wds(tmp_path, LABELS, shards=2)
    theirs = create_dataset("wds/pets", root=str(tmp_path), split="validation")
    pairs = {(np.asarray(image).tobytes(), label) for image, label in theirs}
    assert set(pairs_of(open_wds(tmp_path).val)) == pairs


def test_nothing_is_copied_and_the_folder_keeps_an_index(tmp_path):
    write_wds(tmp_path, LABELS)
    open_wds(tmp_path)
    names = {path.name for path in tmp_path.iterdir() if path.suffix not in (".tar", ".lock")}
    assert names == {"_info.json", ".online_aug_shards.index"}


def test_a_pattern_names_shards_and_their_names_say_the_splits(tmp_path):
    for split, labels in {"train": [0, 1] * 3, "val": [1, 0]}.items():
        for number in range(2):
            members = members_of(noise(len(labels), number), labels)
            write_tar(tmp_path / f"pets-{split}-{number:03d}.tar", members)
    pattern = f"{tmp_path}/pets-{{train,val}}-{{000..001}}.tar"
    splits = load_splits(DataConfig(source=pattern, test_fraction=0.5))
    assert (len(splits.train) + len(splits.test), len(splits.val)) == (12, 4)


def test_a_folder_of_shards_is_divided_as_a_folder_of_images_is(tmp_path):
    write_one(tmp_path / "0.tar")
    splits = load_splits(DataConfig(source=str(tmp_path)))
    assert [len(s) for s in (splits.train, splits.val, splits.test)] == [14, 2, 4]
    assert splits.train.class_names == ("0", "1")


def test_folders_of_splits_hold_shards(tmp_path):
    for split, count in {"train": 4, "Validation": 2, "test": 2}.items():
        write_one(tmp_path / split / "0.tar", count=count)
    splits = load_splits(DataConfig(source=str(tmp_path)))
    assert [len(s) for s in (splits.train, splits.val, splits.test)] == [4, 2, 2]


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_long_names_folders_and_other_members_are_no_obstacle(tmp_path, format):
    deep = "a/b.c/" + "x" * (90 if format == tarfile.USTAR_FORMAT else 150)
    pixels = noise(20, 1)
    members = [("__meta__.json", b"{}")]
    for number, image in enumerate(pixels):
        members += sample(f"{deep}{number}", image, number % 2)
        members.append((f"{deep}{number}.seg.png", b"a mask"))
    write_tar(tmp_path / "0.tar", members, format=format)
    images = open_tar(tmp_path / "0.tar").parent
    assert [images.load(i).tobytes() for i in range(20)] == [image.tobytes() for image in pixels]


def test_labels_come_from_json_by_data_label_key_or_by_timm_s_file(tmp_path):
    members = []
    for number, pixels in enumerate(noise(20, 0)):
        values = {"kind": number % 2, "meta": {"breed": str(number % 4)}}
        members.append((f"{number}.png", encoded(pixels)))
        members.append((f"{number}.json", json.dumps(values).encode()))
    write_tar(tmp_path / "0.tar", members)
    expected = [number % 2 for number in range(20)]
    assert open_tar(tmp_path, label_key="kind").parent.labels.tolist() == expected
    assert set(open_tar(tmp_path, label_key="meta.breed").labels.tolist()) == {0, 1, 2, 3}
    split = {"name": "train", "num_samples": 20, "filenames": ["0.tar"], "alt_label": "kind"}
    (tmp_path / "info.json").write_text(json.dumps({"splits": {"train": split}}))
    assert open_wds(tmp_path).train.parent.labels.tolist() == expected


def test_of_several_images_the_first_ending_of_timm_counts_or_the_named_one(tmp_path):
    members = []
    for number, (one, other) in enumerate(zip(noise(20, 0), noise(20, 1, side=9), strict=True)):
        members += [(f"{number}.webp", encoded(one, "WEBP")), (f"{number}.jpg", encoded(other))]
        members.append((f"{number}.cls", b"%d" % (number % 2)))
    write_tar(tmp_path / "0.tar", members)
    assert size_of(open_tar(tmp_path), 0) == (9, 8)
    assert size_of(open_tar(tmp_path, image_key="webp"), 0) == (6, 5)
    refused(
        "must hold labelled images, got none but 20 without an image", tmp_path, image_key="j2k"
    )


def test_digests_and_names_are_those_of_the_members(tmp_path):
    from cache import content_digest

    write_one(tmp_path / "0.tar")
    images = open_tar(tmp_path / "0.tar")
    assert list(digests_of(images)) == [images.digest(i) for i in range(len(images))]
    assert images.digest(0) == content_digest(images.parent.content(int(images.indices[0])))
    assert file_names_of(images)[0] == f"0.tar/{int(images.indices[0]):04d}.png"


def test_a_withheld_label_is_left_out_with_a_warning(tmp_path, caplog):
    write_one(tmp_path / "0.tar", sample("last", noise(1, 9)[0], -1))
    assert len(open_tar(tmp_path / "0.tar").parent) == 20
    assert "1 samples of" in caplog.text
    assert "with a withheld label" in caplog.text


def test_a_split_of_withheld_labels_is_not_used(tmp_path, caplog):
    write_wds(tmp_path, {"train": [0, 1] * 10, "test": [-1] * 4})
    splits = open_wds(tmp_path)
    assert len(splits.test) == 4  # divided from train
    assert "(test) are withheld" in caplog.text


def test_the_same_key_in_two_shards_is_two_images(tmp_path):
    for number in range(2):
        write_tar(tmp_path / f"{number}.tar", members_of(noise(10, number), [0, 1] * 5))
    images = open_tar(tmp_path).parent
    assert len(images) == 20
    assert len(set(digests_of(images))) == 20


@pytest.mark.parametrize("between", [(), sample("between", noise(1, 2)[0], 0)])
def test_the_same_key_twice_in_a_shard_is_refused(tmp_path, between):
    twice = sample("twice", noise(1, 3)[0], 0)
    write_one(tmp_path / "0.tar", [*twice, *between, *sample("twice", noise(1, 4)[0], 1)])
    refused(r"keys must differ within a shard, .*0\.tar has twice\S* twice", tmp_path)


def test_an_image_without_a_label_is_refused(tmp_path):
    write_one(tmp_path / "0.tar", [("lonely.png", encoded(noise(1, 3)[0]))])
    refused(
        r"must have a label, lonely of .*0\.tar has none: it needs a member lonely\.cls$", tmp_path
    )


def test_an_image_without_the_named_label_is_refused(tmp_path):
    write_one(tmp_path / "0.tar", count=2)
    refused(
        r"0000 of .* has none: its label is kind of a member 0000\.json", tmp_path, label_key="kind"
    )
    json_member = ("0.json", b'{"breed": 1}')
    write_tar(tmp_path / "0.tar", [("0.png", encoded(noise(1, 0)[0])), json_member])
    refused("data.label_key must be a key .* got kind, .* it has breed", tmp_path, label_key="kind")
    refused(r"it needs a member 0\.cls, or data\.label_key for its \.json", tmp_path)


@pytest.mark.parametrize("label", [b"cat", b"", b"1.5"])
def test_a_label_that_is_no_number_is_refused(tmp_path, label):
    write_one(tmp_path / "0.tar", [("x.png", encoded(noise(1, 3)[0])), ("x.cls", label)])
    refused(r"x\.cls of .*0\.tar must be a whole number, got", tmp_path)


@pytest.mark.parametrize("value", [b'{"k": [0, 1]}', b'{"k": 0.5}', b'{"k": true}'])
def test_a_label_of_several_classes_is_refused(tmp_path, value):
    write_tar(tmp_path / "0.tar", [("x.png", encoded(noise(1, 3)[0])), ("x.json", value)])
    refused(r"label of x\.png in .* must be one class as a whole number", tmp_path, label_key="k")


@pytest.mark.parametrize("left", ["100", "512 + 40", "1024", "end - 512", "end - 1", "end"])
def test_a_tar_that_was_cut_is_refused(tmp_path, left):
    path = tmp_path / "0.tar"
    write_one(path, count=4)
    content = path.read_bytes()
    end = -(-len(content.rstrip(b"\0")) // 512) * 512  # then come empty blocks
    path.write_bytes(content[: eval(left, {"end": end})])
    refused(r"0\.tar must be a whole tar file", path)


def test_a_damaged_header_is_refused_and_not_taken_for_the_end(tmp_path):
    path = tmp_path / "0.tar"
    write_one(path, count=4)
    content = bytearray(path.read_bytes())
    content[2048 + 5] ^= 1
    path.write_bytes(content)
    refused(r"0\.tar must be a whole tar file, it is damaged", path)


def test_compressed_shards_are_refused_with_the_way_out(tmp_path):
    write_one(tmp_path / "0.tar")
    packed = gzip.compress((tmp_path / "0.tar").read_bytes())
    (tmp_path / "0.tar").unlink()
    (tmp_path / "0.tar.gz").write_bytes(packed)
    for source in (tmp_path, tmp_path / "0.tar.gz"):
        refused(r"must be plain \.tar files, .* got .*0\.tar\.gz: unpack it to a \.tar", source)
    (tmp_path / "0.tar.gz").rename(tmp_path / "0.tar")
    refused(r"must be plain tar files, .* got .*0\.tar: unpack it with gzip -d", tmp_path)


def test_a_label_beyond_the_named_classes_is_refused_with_the_range(tmp_path):
    write_wds(tmp_path, {"train": [0, 1] * 10, "test": [0, 2]}, class_names=["cat", "dog"])
    with pytest.raises(UserError, match=r"\(test\) must be whole numbers from 0 to 1, .* got 2$"):
        open_wds(tmp_path)


def test_shards_that_the_info_file_names_must_exist(tmp_path):
    write_wds(tmp_path, LABELS)
    (tmp_path / "pets-test-0.tar").unlink()
    with pytest.raises(UserError, match=r"info file names must exist, .*pets-test-0\.tar does not"):
        open_wds(tmp_path)


def test_a_shard_with_fewer_samples_than_its_info_file_says_is_refused(tmp_path):
    write_wds(tmp_path, LABELS)
    write_tar(tmp_path / "pets-test-0.tar", members_of(noise(2, 0), [0, 1]))
    with pytest.raises(UserError, match=r"must hold the 3 samples that its info .* got 2"):
        open_wds(tmp_path)


def test_a_folder_without_shards_is_refused(tmp_path):
    with pytest.raises(UserError, match="data.root must be the folder of the shards of wds/pets"):
        open_wds(tmp_path)


def test_a_mix_of_shards_and_images_is_refused(tmp_path):
    write_one(tmp_path / "0.tar")
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "0.png").write_bytes(encoded(noise(1, 0)[0]))
    refused(r"must hold shards or images, got both, such as 0\.tar", tmp_path)
    assert len(open_tar(tmp_path / "0.tar").parent) == 20


def test_a_broken_image_is_refused_or_left_out(tmp_path):
    write_one(tmp_path / "0.tar", [("x.png", b"no image"), ("x.cls", b"1")])
    refused(
        r"image x\.png of .*0\.tar cannot be read: it is not an image .*on_bad_image=skip",
        tmp_path,
    )
    splits = load_splits(DataConfig(source=str(tmp_path), on_bad_image="skip"))
    assert len(splits.train) + len(splits.val) + len(splits.test) == 20
    assert splits.skipped == (f"x.png of {tmp_path}/0.tar",)
    with pytest.raises(BadImageError, match=r"x\.png of"):
        splits.train.parent.parent.load(20)


def test_files_of_other_programs_do_not_make_a_folder_of_images_one_of_shards(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for number, pixels in enumerate(noise(10, len(name))):
            (tmp_path / name / f"{number}.png").write_bytes(encoded(pixels))
    for name in ("info.json", "state.json", "dataset_dict.json"):
        (tmp_path / name).write_text("[]")
    (tmp_path / "photos.tar.gz").write_bytes(b"an archive that was unpacked")
    assert load_splits(DataConfig(source=str(tmp_path))).train.class_names == ("cat", "dog")
