"""Published data sets in miniature: reading them, and errors for files that are wrong."""

import os
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from published_samples import (
    SPECIES,
    TEST,
    THINGS,
    TRAIN,
    WRITERS,
    accept_small_flowers,
    picture,
    write_cifar10,
    write_cub,
    write_flowers,
    write_lines,
    write_pets,
)
from scipy.io import savemat
from torchvision import datasets

from online_aug.config import DataConfig
from online_aug.data.image_sets import file_names_of, groups_of
from online_aug.data.images import BadImageError
from online_aug.data.published.segmentation import VOC_NAMES
from online_aug.data.published.sets import PUBLISHED, published_splits
from online_aug.data.sources import load_splits
from online_aug.errors import UserError

DATA_DOC = Path(__file__).parents[3] / "docs" / "DATA.md"
BIRD_NAMES = ("Black footed Albatross", "Laysan Albatross", "Scissor tailed Flycatcher")
CLASS_NAMES = {
    "cub200": BIRD_NAMES,
    "cub200_waterbirds": BIRD_NAMES,
    "waterbirds": ("landbird", "waterbird"),
    "fgvc_aircraft": ("707-320", "Boeing 717", "F-16A/B"),
    "stanford_cars": ("AM General Hummer SUV 2000", "Acura RL Sedan 2012"),
    "stanford_dogs": ("Chihuahua", "Japanese spaniel", "Shih-Tzu"),
    "oxford_pets": ("Abyssinian", "american bulldog", "Bengal"),
    "food101": ("apple pie", "beef tartare"),
    "cifar10": THINGS,
    "pascal_voc": VOC_NAMES,
    "tiny_imagenet": ("goldfish", "crane (n02012849)", "crane (n03126707)"),
    "imagenet": ("n01440764", "n01443537"),
}
SIZES = {
    "cifar10": {"train": 50, "test": 10},
    "cifar100": {"train": 200, "test": 100},
    "oxford_flowers": {"train": 102, "val": 102, "test": 102},
    "waterbirds": {"train": 12, "val": 6, "test": 6},
}
NAMES = sorted(PUBLISHED)
FILES = [(name, need) for name in NAMES for need in PUBLISHED[name].needs if not need.endswith("/")]


@pytest.fixture(autouse=True)
def _small_flowers(monkeypatch):
    accept_small_flowers(monkeypatch)


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def miniature(tmp_path_factory):
    """Return a function that writes a data set once and returns its `data.root`."""
    written = {}

    def root_of(name):
        if name not in written:
            written[name] = tmp_path_factory.mktemp(name)
            WRITERS[name](written[name])
        return written[name]

    return root_of


@pytest.fixture
def root(miniature, name):
    """A `data.root` that tests only read."""
    return miniature(name)


@pytest.fixture
def own_root(root, tmp_path):
    """A copy by hard links: files may be removed and written anew, not changed in place."""
    return shutil.copytree(root, tmp_path, copy_function=os.link, dirs_exist_ok=True)


def refusal(name, root):
    with pytest.raises(UserError) as caught:
        published_splits(name, root)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def shade(images, index):
    return int(images.load(index)[0, 0, 0])


def test_every_published_set_has_a_miniature():
    assert WRITERS.keys() == PUBLISHED.keys()


def test_the_documentation_lists_every_published_set():
    listed = re.findall(r"^\| `(\w+)` \|", DATA_DOC.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(listed) == NAMES


def test_the_splits_are_those_of_the_authors(name, root):
    classes = len(CLASS_NAMES.get(name, ()))
    expected = SIZES.get(name, {"train": TRAIN * classes, "test": TEST * classes})
    found = {split: len(images) for split, images in published_splits(name, root).items()}
    assert found == expected


@pytest.mark.parametrize("name", sorted(CLASS_NAMES))
def test_classes_have_the_names_the_authors_gave_them(name, root):
    splits = published_splits(name, root).values()
    assert {images.class_names for images in splits} == {CLASS_NAMES[name]}


@pytest.mark.parametrize("name", sorted(PUBLISHED.keys() - {"waterbirds"}))
def test_every_image_has_its_own_label(name, root):
    for images in published_splits(name, root).values():
        shades = [shade(images, index) for index in range(len(images))]
        assert shades == (2 * images.labels).tolist()


def test_no_image_is_in_two_splits(name, root):
    splits = load_splits(DataConfig(source=name, root=root))
    digests = [
        images.digest(index)
        for images in (splits.train, splits.val, splits.test)
        for index in range(len(images))
    ]
    assert len(set(digests)) == len(digests)


def test_a_pickled_set_reads_the_same(name, root):
    images = published_splits(name, root)["test"]
    again = pickle.loads(pickle.dumps(images))
    assert again.digest(1) == images.digest(1)
    np.testing.assert_array_equal(again.load(1), images.load(1))


def test_the_error_for_a_folder_without_the_set_names_what_is_expected(name, tmp_path):
    message = refusal(name, tmp_path)
    assert message.startswith(f"data.root must hold {PUBLISHED[name].title} with ")
    assert all(need in message for need in PUBLISHED[name].needs)
    assert f"got {tmp_path} without {PUBLISHED[name].needs[0]}" in message


@pytest.mark.parametrize(("name", "need"), FILES)
def test_a_missing_file_is_named(name, need, own_root):
    (own_root / need).unlink()
    assert f"got {own_root} without {need};" in refusal(name, own_root)


@pytest.mark.parametrize(("name", "need"), FILES)
def test_a_file_with_other_content_is_refused_with_set_and_folder(name, need, own_root):
    (own_root / need).unlink()
    (own_root / need).write_bytes(b"<html>\xff\x00 moved")
    message = refusal(name, own_root)
    assert f"{PUBLISHED[name].title} as it was published, got {own_root}" in message


@pytest.mark.parametrize(("name", "need"), FILES)
def test_an_empty_file_is_refused_in_one_line(name, need, own_root):
    (own_root / need).unlink()
    (own_root / need).write_bytes(b"")
    assert f"got {own_root}" in refusal(name, own_root)


def test_a_listed_image_that_is_missing_is_named(tmp_path):
    write_cub(tmp_path)
    gone = tmp_path / "CUB_200_2011" / "images" / SPECIES[1] / "5.jpg"
    gone.unlink()
    with pytest.raises(BadImageError, match=f"{gone} cannot be read: No such file"):
        load_splits(DataConfig(source="cub200", root=tmp_path))


@pytest.mark.parametrize(
    ("table", "row", "reason"),
    [
        ("image_class_labels", (1, 4), "class of .*0.jpg must be one of 3, counted from 0, got 3"),
        ("image_class_labels", (1, 0), "must be one of 3, counted from 0, got -1"),
        ("image_class_labels", (1, "jay"), "invalid literal .* 'jay'"),
        ("images", (1, "../secret.jpg"), "files must lie in .*images, got ../secret.jpg"),
        ("images", (1, "/etc/secret.jpg"), "files must lie in .*images, got /etc/secret.jpg"),
        ("images", (1,), "images.txt must have 2 columns, got '1' in line 1"),
        ("train_test_split", (99, 1), "the lists in .*CUB_200_2011 must name the same images"),
    ],
)
def test_a_wrong_line_of_a_list_is_quoted(tmp_path, table, row, reason):
    write_cub(tmp_path)
    path = tmp_path / "CUB_200_2011" / f"{table}.txt"
    first, *rest = path.read_text().splitlines()
    write_lines(path, [row, *([line] for line in rest)])
    with pytest.raises(UserError, match=reason):
        published_splits("cub200", tmp_path)


def test_cub_can_be_cut_to_few_shots_and_to_a_long_tail(tmp_path):
    write_cub(tmp_path)
    few = load_splits(DataConfig(source="cub200", root=tmp_path, examples_per_class=2))
    tail = load_splits(DataConfig(source="cub200", root=tmp_path, imbalance_factor=0.3))
    chosen = {"imbalance_factor": 0.3, "imbalance_cut": "published"}
    published = load_splits(DataConfig(source="cub200", root=tmp_path, **chosen))
    assert np.bincount(few.train.labels).tolist() == [2, 2, 2]
    assert np.bincount(tail.train.labels).tolist() == [3, 2, 1]
    assert np.bincount(published.train.labels).tolist() == [3, 1, 1]
    assert len(few.test) == len(tail.test) == 6


def test_pets_equal_what_torchvision_reads(tmp_path):
    write_pets(tmp_path)
    for ours, theirs in {"train": "trainval", "test": "test"}.items():
        images = published_splits("oxford_pets", tmp_path)[ours]
        known = datasets.OxfordIIITPet(tmp_path, split=theirs)
        assert [images.path(index) for index in range(len(images))] == known._images
        assert images.labels.tolist() == known._labels


def test_waterbirds_have_groups_of_class_and_place(tmp_path):
    WRITERS["waterbirds"](tmp_path)
    images = load_splits(DataConfig(source="waterbirds", root=tmp_path)).test
    groups = groups_of(images)
    assert groups.names == (
        "landbird on land",
        "landbird on water",
        "waterbird on land",
        "waterbird on water",
    )
    assert groups.numbers.tolist() == [2, 3, 2, 3, 0, 1]
    assert images.labels.tolist() == [1, 1, 1, 1, 0, 0]


def test_a_cut_keeps_the_group_of_each_image(tmp_path):
    WRITERS["waterbirds"](tmp_path)
    data = DataConfig(source="waterbirds", root=tmp_path, examples_per_class=2)
    train = load_splits(data).train
    names = groups_of(train).names
    expected = [train.load(index).shape[1] % 2 for index in range(len(train))]  # odd: on water
    assert [names[number].endswith("water") for number in groups_of(train).numbers] == expected


def test_the_species_of_waterbirds_have_the_same_groups(tmp_path):
    WRITERS["cub200_waterbirds"](tmp_path)
    splits = load_splits(DataConfig(source="cub200_waterbirds", root=tmp_path))
    assert splits.test.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert groups_of(splits.test).numbers.tolist() == [2, 3, 2, 3, 0, 1]
    assert groups_of(splits.train) is None


@pytest.mark.parametrize(("column", "value"), [("y", 2), ("place", 2), ("place", "sea")])
def test_an_unknown_group_is_refused(tmp_path, column, value):
    WRITERS["waterbirds"](tmp_path)
    path = tmp_path / "waterbird_complete95_forest2water2" / "metadata.csv"
    header, first, *rest = path.read_text().splitlines()
    cells = dict(zip(header.split(","), first.split(","), strict=True)) | {column: str(value)}
    path.write_text("\n".join([header, ",".join(cells.values()), *rest]))
    refusal("waterbirds", tmp_path)


def test_a_missing_column_is_named(tmp_path):
    WRITERS["waterbirds"](tmp_path)
    path = tmp_path / "waterbird_complete95_forest2water2" / "metadata.csv"
    path.write_text(path.read_text().replace(",place,", ",where,", 1))
    assert "metadata.csv must have the column place" in refusal("waterbirds", tmp_path)


def test_the_pixels_of_a_record_are_in_the_right_positions(tmp_path):
    write_cifar10(tmp_path)
    images = published_splits("cifar10", tmp_path)["train"]
    last = images.load(49)
    assert (last.shape, last.dtype) == ((32, 32, 3), np.uint8)
    assert last[31, 30].tolist() == [18, 18, 5]
    assert (np.delete(last.reshape(-1, 3), 31 * 32 + 30, axis=0) == 18).all()


def test_the_python_version_of_cifar_is_not_unpickled(tmp_path):
    (tmp_path / "cifar-10-batches-py").mkdir()
    assert "data.source=torch/cifar10 reads the Python version" in refusal("cifar10", tmp_path)


@pytest.mark.parametrize("change", [b"x", b"\x0a" + bytes(3072)])
def test_truncated_records_and_unknown_labels_are_refused_with_their_file(tmp_path, change):
    write_cifar10(tmp_path)
    path = tmp_path / "cifar-10-batches-bin" / "data_batch_3.bin"
    path.write_bytes(path.read_bytes() + change)
    message = refusal("cifar10", tmp_path)
    assert "data_batch_3.bin" in message
    assert "whole records of 3073 bytes" in message or "must be below 10, got 10" in message


def test_a_file_that_became_shorter_is_named(tmp_path):
    write_cifar10(tmp_path)
    images = published_splits("cifar10", tmp_path)["test"]
    (tmp_path / "cifar-10-batches-bin" / "test_batch.bin").write_bytes(b"")
    with pytest.raises(BadImageError, match=r"image 7 of .*test_batch\.bin cannot be read"):
        images.load(7)


def test_validation_images_outside_class_folders_are_refused(tmp_path):
    WRITERS["imagenet"](tmp_path)
    for path in sorted((tmp_path / "imagenet" / "val").glob("*/*")):
        path.rename(path.parents[1] / path.name)
        if not any(path.parent.iterdir()):
            path.parent.rmdir()
    assert "imagenet/val must hold a folder for each class" in refusal("imagenet", tmp_path)


def test_aircraft_trains_on_trainval_or_on_train_beside_the_official_validation(miniature):
    root = miniature("fgvc_aircraft")
    usual, chosen = (
        published_splits("fgvc_aircraft", root, choice) for choice in ("trainval", "train")
    )
    assert {split: len(images) for split, images in usual.items()} == {
        split: len(images) for split, images in published_splits("fgvc_aircraft", root).items()
    }
    files = {split: set(images.files) for split, images in chosen.items()}
    assert set(usual["train"].files) == files["train"] | files["val"]
    assert not files["train"] & files["val"]
    assert files["test"] == set(usual["test"].files)


def test_flowers_trains_on_train_and_validation_together(miniature):
    root = miniature("oxford_flowers")
    found = published_splits("oxford_flowers", root, "trainval")
    usual = published_splits("oxford_flowers", root)
    assert set(found["train"].files) == {*usual["train"].files, *usual["val"].files}
    assert found.keys() == {"train", "test"}


def write_uneven_flowers(root, sizes):
    """Write classes of these sizes; every class has an image of each official split."""
    write_flowers(root)
    folder = root / "flowers-102"
    labels = [1 + k % 102 for k in range(306)]
    for label, size in sizes.items():
        labels += [label] * (size - 3)
    for number in range(307, len(labels) + 1):
        picture(folder / "jpg" / f"image_{number:05d}.jpg", labels[number - 1] - 1, number)
    savemat(folder / "imagelabels.mat", {"labels": np.asarray(labels)})
    numbers = np.arange(1, len(labels) + 1)
    parts = {"valid": numbers[:102], "trnid": numbers[102:204], "tstid": numbers[204:]}
    savemat(folder / "setid.mat", parts)
    return np.asarray(labels)


@pytest.mark.parametrize("seed", [0, 7])
def test_the_halves_of_flowers_are_drawn_class_by_class_from_one_generator(tmp_path, seed):
    """Write the protocol down a second time, in the plainest way."""
    labels = write_uneven_flowers(tmp_path, {1: 8, 2: 11, 102: 5})
    rng, expected = np.random.default_rng(seed), []
    for label in range(1, 103):
        numbers = [k + 1 for k in range(len(labels)) if labels[k] == label]
        order = list(rng.permutation(len(numbers)))
        expected += [f"image_{numbers[k]:05d}.jpg" for k in order[: int(0.5 * len(numbers))]]
    found = published_splits("oxford_flowers", tmp_path, "half", seed)
    names = {split: {Path(f).name for f in file_names_of(part)} for split, part in found.items()}
    assert names["train"] == set(expected)
    assert len(names["train"] | names["test"]) == len(labels)
    assert not names["train"] & names["test"]
    assert all(shade(found["test"], k) == 2 * found["test"].labels[k] for k in range(20))


@pytest.mark.parametrize(
    ("source", "split", "said"),
    [
        ("cub200", "trainval", r"one that CUB-200-2011 has \(train\), got trainval"),
        ("fgvc_aircraft", "half", r"FGVC-Aircraft has \(trainval, train\), got half"),
        ("digits", "half", "null unless data.source is a published set, got half for digits"),
    ],
)
def test_a_split_that_a_set_does_not_have_is_refused(source, split, said, miniature, tmp_path):
    root = miniature(source) if source in WRITERS else tmp_path
    with pytest.raises(UserError, match=said) as caught:
        load_splits(DataConfig(source=source, root=root, train_split=split))
    assert "\n" not in str(caught.value)


def test_a_list_that_the_chosen_split_lacks_is_refused_with_its_name(tmp_path):
    WRITERS["fgvc_aircraft"](tmp_path)
    (tmp_path / "fgvc-aircraft-2013b/data/images_variant_val.txt").unlink()
    with pytest.raises(UserError, match=r"cannot be read.*images_variant_val\.txt"):
        published_splits("fgvc_aircraft", tmp_path, "train")


def test_an_image_of_pascal_without_an_object_is_named(miniature, tmp_path):
    root = shutil.copytree(miniature("pascal_voc"), tmp_path / "copy")
    path = root / "VOCdevkit/VOC2012/SegmentationObject/2007_004001.png"
    Image.fromarray(np.full((8, 9), 255, np.uint8)).save(path)
    assert "the mask of 2007_004001 is without an object" in refusal("pascal_voc", root)
