"""Sources become three splits, or one line says why they cannot be used."""

import os
import pickle

import numpy as np
import PIL.Image
import pytest

from cache import Store
from online_aug.data import sources
from online_aug.data.image_sets import FolderSet, Subset, digests_of
from online_aug.data.images import BadImageError
from online_aug.data.settings import DataConfig
from online_aug.data.sources import check_images, load_splits
from online_aug.errors import UserError


def fill(folder, count, suffix="png"):
    """Write `count` images that differ from one another and from those of other folders."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(list(folder.as_posix().encode()))
    for number in range(count):
        pixels = rng.integers(0, 256, (6, 9, 3), dtype=np.uint8)
        PIL.Image.fromarray(pixels).save(folder / f"{number:03d}.{suffix}")


def splits_of(folder, **settings):
    return load_splits(DataConfig(source=str(folder), **settings))


def digests(images):
    return [images.digest(index) for index in range(len(images))]


@pytest.fixture
def flat(tmp_path):
    """Write one folder of class folders: 20 cats, 10 dogs, 10 yaks."""
    for name, count in {"cat": 20, "dog": 10, "yak": 10}.items():
        fill(tmp_path / name, count)
    return tmp_path


@pytest.fixture
def ready(tmp_path):
    """Write three splits of two classes."""
    for split, count in {"train": 10, "val": 3, "test": 4}.items():
        for name in ("cat", "dog"):
            fill(tmp_path / split / name, count)
    return tmp_path


def test_split_folders_are_used_as_they_are(ready):
    splits = splits_of(ready)
    assert [len(images) for images in (splits.train, splits.val, splits.test)] == [20, 6, 8]
    assert splits.train.class_names == splits.test.class_names == ("cat", "dog")
    assert splits.test.labels.tolist() == [0] * 4 + [1] * 4
    assert splits.test.labels.dtype == np.int64


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("Train", "Val", "TEST"),
        ("training", "validation", "testing"),
        ("train", "valid", "Test"),
        ("train", "dev", "test"),
        ("train", "Eval", "test"),
    ],
)
def test_splits_are_known_by_other_names_in_any_case(ready, train, val, test):
    for old, new in {"train": train, "val": val, "test": test}.items():
        (ready / old).rename(ready / new)
    splits = splits_of(ready)
    assert [len(images) for images in (splits.train, splits.val, splits.test)] == [20, 6, 8]
    assert splits.train.class_names == ("cat", "dog")
    assert splits.doubts == ()


def test_splits_without_one_to_train_on_are_refused(ready):
    (ready / "train").rename(ready / "cats_and_dogs")
    assert "must hold a folder train with class folders beside test, val" in refusal(ready)


def test_splits_without_class_folders_are_refused(tmp_path):
    for split in ("train", "test"):
        fill(tmp_path / split, 4)
    assert "got test, train without class folders" in refusal(tmp_path)


def test_a_folder_that_looks_like_a_split_beside_classes_is_told(flat):
    fill(flat / "test", 8)
    (said,) = splits_of(flat).doubts
    assert said.startswith(f"{flat}/test counts as a class: it is named like a split")


def test_a_folder_beside_the_splits_that_is_not_read_is_told(ready):
    fill(ready / "extra", 1)
    assert splits_of(ready).doubts == (
        f"{ready}/extra is not read: beside test, train, val it is no split",
    )


def test_images_are_loaded_as_they_were_written(ready):
    loaded = splits_of(ready).val.load(4)
    written = np.asarray(PIL.Image.open(ready / "val" / "dog" / "001.png"))
    np.testing.assert_array_equal(loaded, written)


def test_a_single_folder_is_split_by_class_without_loss(flat):
    splits = splits_of(flat, val_fraction=0.1, test_fraction=0.2)
    parts = (splits.train, splits.val, splits.test)
    counts = [np.bincount(images.labels).tolist() for images in parts]
    assert counts == [[14, 7, 7], [2, 1, 1], [4, 2, 2]]
    assert len({digest for images in parts for digest in digests(images)}) == 40


def test_only_a_missing_split_is_divided_from_train(ready):
    (ready / "val").rename(ready / ".gone")
    splits = splits_of(ready, val_fraction=0.3)
    assert [len(images) for images in (splits.train, splits.val, splits.test)] == [14, 6, 8]


def test_without_a_validation_share_all_images_are_trained_on(flat):
    splits = splits_of(flat, val_fraction=0, test_fraction=0.2)
    assert [len(images) for images in (splits.train, splits.val, splits.test)] == [32, 0, 8]
    assert splits.val.class_names == splits.train.class_names


def test_a_validation_split_of_the_set_is_kept_without_a_share(ready):
    splits = splits_of(ready, val_fraction=0)
    assert [len(images) for images in (splits.train, splits.val, splits.test)] == [20, 6, 8]


def test_nothing_is_divided_without_a_validation_share_if_there_is_a_test(ready):
    (ready / "val").rename(ready / ".gone")
    splits = splits_of(ready, val_fraction=0)
    assert [len(images) for images in (splits.train, splits.val, splits.test)] == [20, 0, 8]


def test_the_split_depends_on_the_data_seed(flat):
    first, same, other = (digests(splits_of(flat, seed=seed).val) for seed in (0, 0, 1))
    assert first == same
    assert first != other


def test_the_few_shot_cut_affects_training_only(flat):
    whole, cut = splits_of(flat), splits_of(flat, examples_per_class=3)
    assert np.bincount(cut.train.labels).tolist() == [3, 3, 3]
    assert set(digests(cut.train)) <= set(digests(whole.train))
    assert digests(cut.test) == digests(whole.test)


def test_the_long_tail_is_cut_before_few_shot(ready):
    sizes = {
        count: np.bincount(splits_of(ready, imbalance_factor=0.3, **count_of(count)).train.labels)
        for count in (None, 2)
    }
    assert {count: found.tolist() for count, found in sizes.items()} == {None: [10, 3], 2: [2, 2]}
    with pytest.raises(UserError, match="class 'dog' must have at least 4 .* got 3"):
        splits_of(ready, imbalance_factor=0.3, examples_per_class=4)


def count_of(count):
    return {} if count is None else {"examples_per_class": count}


def test_deeper_folders_are_searched_and_hidden_and_other_files_ignored(ready):
    fill(ready / "train" / "cat" / "2024" / "may", 2, suffix="JPG")
    fill(ready / "train" / "cat" / ".thumbnails", 5)
    (ready / "train" / "cat" / ".hidden.png").write_bytes(b"x")
    (ready / "train" / "cat" / "notes.txt").write_text("x")
    assert np.bincount(splits_of(ready).train.labels).tolist() == [12, 10]


def test_links_are_followed_and_cycles_end(ready, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    fill(elsewhere, 5)
    (ready / "train" / "fox").symlink_to(elsewhere)
    (ready / "train" / "cat" / "up").symlink_to(ready / "train" / "cat")
    assert np.bincount(splits_of(ready).train.labels).tolist() == [10, 10, 5]


def test_a_class_called_train_is_not_taken_for_a_split(tmp_path):
    for name in ("boat", "plane", "train"):
        fill(tmp_path / name, 10)
    assert splits_of(tmp_path).train.class_names == ("boat", "plane", "train")


@pytest.mark.parametrize("policy", ["error", "skip"])
def test_a_file_that_passed_a_check_is_checked_again_only_if_it_changes(
    ready, tmp_path_factory, monkeypatch, policy
):
    cache = tmp_path_factory.mktemp("with_cache") / "cache"
    Store(cache).open().close()
    (ready / "train" / "cat" / "000.png").write_bytes(b"broken")
    for path in ready.rglob("*.png"):
        os.utime(path, (10**9, 10**9))
    looked, seen = [], []
    level = sources._LEVELS[policy]
    read, of_content = sources._CHECKS[level]
    noted = (lambda path: looked.append(path) or read(path), of_content)
    monkeypatch.setitem(sources._CHECKS, level, noted)
    data = DataConfig(source=str(ready), on_bad_image=policy)
    if policy == "error":
        with pytest.raises(BadImageError, match=r"000\.png cannot be read"):
            load_splits(data, cache)
        fill(ready / "train" / "cat", 1)
        looked.clear()
    else:
        assert len(load_splits(data, cache).train) == 19
        assert len(looked) == 34
        os.utime(ready / "val" / "dog" / "001.png", (10**9, 10**9 + 1))
        looked.clear()
    digests_of(load_splits(data, cache).train)
    assert sorted(path.relative_to(ready).parts[0] for path in looked) == (
        ["test"] * 8 + ["val"] * 6 if policy == "error" else ["train", "val"]
    )
    seen += digests_of(load_splits(data, cache).train)
    assert seen == digests(load_splits(data).train)


def test_a_file_that_vanishes_is_named_with_the_way_out(ready, tmp_path):
    data = DataConfig(source=str(ready), examples_per_class=10)  # its images are read afterwards
    train = load_splits(data, tmp_path / "cache").train
    (ready / "train" / "cat" / "000.png").unlink()
    with pytest.raises(BadImageError, match=r"000\.png.*No such file.*on_bad_image=skip"):
        digests_of(train)


def test_a_digest_depends_on_the_content_and_not_on_the_path(ready):
    before = splits_of(ready).train
    (ready / "train" / "cat" / "000.png").rename(ready / "train" / "cat" / "zzz.png")
    after = splits_of(ready).train
    assert before.digest(1) == after.digest(0)
    assert len(before.digest(1)) == 32


def test_a_set_can_be_pickled(flat):
    train = splits_of(flat, examples_per_class=2).train
    again = pickle.loads(pickle.dumps(train))
    assert digests(again) == digests(train)
    np.testing.assert_array_equal(again.labels, train.labels)


def test_a_subset_keeps_labels_digests_and_pixels(ready):
    whole = splits_of(ready).train
    part = Subset(Subset(whole, np.array([3, 11, 19])), np.array([2, 0]))
    assert part.labels.tolist() == [1, 0]
    assert digests(part) == [whole.digest(19), whole.digest(3)]
    np.testing.assert_array_equal(part.load(0), whole.load(19))


def test_broken_files_are_refused_with_the_first_name_and_their_number(ready):
    for name in ("003.png", "007.png"):
        (ready / "train" / "dog" / name).write_bytes(b"no image")
    with pytest.raises(BadImageError, match=r"dog/003\.png .*\(and 1 more\).*on_bad_image=skip"):
        splits_of(ready)


def test_broken_files_are_left_out_and_listed_if_configured(ready):
    bad = ready / "train" / "dog" / "003.png"
    bad.write_bytes(b"no image")
    splits = splits_of(ready, on_bad_image="skip")
    assert splits.skipped == (str(bad),)
    assert np.bincount(splits.train.labels).tolist() == [10, 9]


def test_broken_files_are_left_out_before_the_few_shot_cut(ready):
    for number in range(5):
        (ready / "train" / "dog" / f"{number:03d}.png").write_bytes(b"no image")
    splits = splits_of(ready, on_bad_image="skip", examples_per_class=5)
    assert np.bincount(splits.train.labels).tolist() == [5, 5]


def test_a_file_broken_after_its_header_is_named_when_loaded(ready):
    path = ready / "train" / "cat" / "000.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(BadImageError, match=r"cat/000\.png cannot be read"):
        splits_of(ready).train.load(0)


def test_a_file_broken_after_its_header_is_left_out_if_configured(ready):
    path = ready / "train" / "cat" / "000.png"
    path.write_bytes(path.read_bytes()[:60])
    assert splits_of(ready, on_bad_image="skip").skipped == (str(path),)


def test_checking_reports_every_file(ready):
    seen = []
    images = splits_of(ready).train
    assert isinstance(images, FolderSet)
    check_images(images, "error", lambda done, total: seen.append((done, total)))
    assert seen == [(k, 20) for k in range(1, 21)]


def refusal(folder, **settings):
    with pytest.raises(UserError) as caught:
        splits_of(folder, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("source", ["/nowhere/birds", "digitz", "imagenets"])
def test_the_error_for_an_unknown_source_says_what_is_allowed(source):
    message = refusal(source)
    assert message.startswith("data.source must be digits, pocket_birds, cub200, ")
    assert ", an image folder that exists, a folder of .tar or .parquet shards or a" in message
    assert "pattern for them, or a timm name such as torch/cifar10" in message
    assert message.endswith(f"got {source}")


def test_a_folder_without_classes_is_refused(tmp_path):
    fill(tmp_path, 3)
    assert f"{tmp_path} must hold a folder for each class" in refusal(tmp_path)


def test_an_empty_split_folder_is_refused(ready):
    for name in ("cat", "dog"):
        (ready / "val" / name).rename(ready / f".{name}")
    assert f"{ready / 'val'} must hold a folder for each class" in refusal(ready)


def test_a_source_without_any_image_is_refused(tmp_path):
    (tmp_path / "cat").mkdir()
    (tmp_path / "dog").mkdir()
    (tmp_path / "dog" / "notes.txt").write_text("x")
    assert f"no images were found in {tmp_path}" in refusal(tmp_path)


@pytest.mark.parametrize("split", ["train", "test"])
def test_an_empty_class_is_named(ready, split):
    for path in (ready / split / "dog").iterdir():
        path.unlink()
    assert f"class 'dog' in {ready / split} has none" in refusal(ready)


def test_a_class_whose_files_are_all_broken_is_named(ready):
    for path in (ready / "train" / "dog").iterdir():
        path.write_bytes(b"no image")
    message = refusal(ready, on_bad_image="skip")
    assert "readable training images, 'dog' has none" in message


@pytest.mark.parametrize("count", [1, 2])
def test_a_class_too_small_to_be_split_is_named(flat, count):
    fill(flat / "emu", count)
    message = refusal(flat)
    assert "class 'emu' must have at least 3 training images to cut val and test" in message
    assert message.endswith(f"got {count}")


@pytest.mark.parametrize("name", ["@eaDir", "__MACOSX", "$RECYCLE.BIN", "lost+found"])
def test_folders_that_systems_add_hold_no_images_and_are_no_classes(ready, name):
    for place in (ready, ready / "train", ready / "train" / "cat"):
        fill(place / name / "thumbnails", 3)
    splits = splits_of(ready)
    assert splits.train.class_names == ("cat", "dog")
    assert np.bincount(splits.train.labels).tolist() == [10, 10]
    assert splits.doubts == ()


def test_one_image_of_a_class_is_enough_if_nothing_is_cut(ready):
    fill(ready / "train" / "emu", 1)
    assert splits_of(ready).train.labels.tolist().count(2) == 1


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_class_that_train_lacks_is_named_with_its_split(ready, split):
    fill(ready / split / "emu", 2)
    message = refusal(ready)
    assert f"every class of the {split} split must be in train, 'emu'" in message
    assert message.endswith("is not")


def test_a_class_may_be_missing_from_the_test_split(ready):
    fill(ready / "train" / "bee", 3)
    assert splits_of(ready).test.labels.tolist() == [1] * 4 + [2] * 4


def test_a_single_class_is_refused(tmp_path):
    fill(tmp_path / "cat", 9)
    assert "at least two classes, got only 'cat'" in refusal(tmp_path)


def test_two_validation_folders_are_refused(ready):
    fill(ready / "valid" / "cat", 1)
    assert "must hold one folder for the val split" in refusal(ready)


def test_asking_for_more_examples_than_a_class_has_names_the_class(flat):
    message = refusal(flat, examples_per_class=8)
    assert "class 'dog' must have at least 8 training images for data.examples_per_class" in message
