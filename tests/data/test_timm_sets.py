"""Data sets by timm's names: torchvision's readers on tiny files, and a fake of the hub."""

import io
import logging
import pickle
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
from published_samples import write_mnist
from timm.data import dataset_factory

from online_aug.data.image_sets import FolderSet
from online_aug.data.images import BadImageError
from online_aug.data.settings import DataConfig
from online_aug.data.sources import load_splits
from online_aug.data.timm_sets import TimmSet
from online_aug.errors import UserError


def open_set(source, root, **settings):
    return load_splits(DataConfig(source=source, root=root, **settings))


def encoded(pixels, **options):
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, "PNG", **options)
    return buffer.getvalue()


class FakeHub:
    """An `hfds/` set as timm opens it: a reader of encoded images over a table.

    It has everything we use: `reader[index]` returns an open stream and a label, `reader.dataset`
    is a table whose `info.splits` names all splits, and `reader.class_to_idx` may be empty.
    """

    def __init__(self, splits, class_to_idx):
        self.splits, self.class_to_idx = splits, class_to_idx

    def __call__(self, name, root, split):
        images, labels = self.splits[split]
        info = SimpleNamespace(splits=dict.fromkeys(self.splits))
        return SimpleNamespace(reader=Reader(images, labels, self.class_to_idx, info))


class Table(dict):
    """Columns by name, with an attribute `info`."""


class Reader:
    label_key = "label"

    def __init__(self, images, labels, class_to_idx, info):
        self.images, self.class_to_idx = images, class_to_idx
        self.dataset = Table(label=labels)
        self.dataset.info = info

    def __getitem__(self, index):
        return io.BytesIO(self.images[index]), self.dataset["label"][index]


def hub_split(labels, seed):
    rng = np.random.default_rng(seed)
    images = [encoded(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)) for _ in labels]
    return images, labels


@pytest.fixture
def hub(monkeypatch):
    def use(splits, class_to_idx=None):
        monkeypatch.setattr(dataset_factory, "create_dataset", FakeHub(splits, class_to_idx or {}))

    return use


def test_a_torchvision_set_keeps_labels_names_and_pixels(tmp_path):
    images = write_mnist(tmp_path)
    splits = open_set("torch/mnist", tmp_path)
    assert splits.test.class_names[3] == "3 - three"
    np.testing.assert_array_equal(splits.test.labels, np.tile(np.arange(10), 6))
    np.testing.assert_array_equal(splits.test.load(13)[..., 1], images[13])


def test_validation_images_come_from_train_and_never_from_the_test(tmp_path):
    write_mnist(tmp_path)
    splits = open_set("torch/mnist", tmp_path, val_fraction=0.5)
    assert [len(images) for images in (splits.train, splits.val, splits.test)] == [30, 30, 60]
    test = {splits.test.digest(index) for index in range(60)}
    assert test.isdisjoint(splits.val.digest(index) for index in range(30))


def test_a_set_without_files_is_pickled_without_its_pixels(tmp_path):
    write_mnist(tmp_path)
    images = open_set("torch/mnist", tmp_path).test
    assert isinstance(images, TimmSet)
    before = images.digest(7)
    packed = pickle.dumps(images)
    assert len(packed) < 2000
    assert pickle.loads(packed).digest(7) == before


def test_a_set_of_files_is_decoded_by_us(tmp_path):
    for version in ("2021_train", "2021_valid"):
        for number, kingdom in enumerate(("Animalia", "Plantae")):
            folder = tmp_path / version / f"{number:05d}_{kingdom}_a_b_c_d_e_f"
            folder.mkdir(parents=True)
            for image in range(3):
                deep = np.full((2, 3), 40_000 + image, np.uint16)
                PIL.Image.fromarray(deep).save(folder / f"{image}.png")
    splits = open_set("torch/inaturalist", tmp_path)
    assert isinstance(splits.val, FolderSet)
    assert splits.val.class_names[1] == "00001_Plantae_a_b_c_d_e_f"
    assert splits.val.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert splits.val.load(0)[0, 0, 0] == round(40_000 / 257)


def test_an_image_folder_of_torchvision_is_the_root(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for number in range(9):
            pixels = np.full((2, 2, 3), number, np.uint8)
            PIL.Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")
    assert open_set("torch/image_folder", tmp_path).train.class_names == ("cat", "dog")


def test_a_hub_set_keeps_splits_names_and_pixels(tmp_path, hub):
    train, val = hub_split([0, 1] * 5, 0), hub_split([1, 0, 1], 1)
    hub({"train": train, "validation": val}, {"cat": 0, "dog": 1})
    splits = open_set("hfds/some/pets", tmp_path)
    assert splits.val.class_names == ("cat", "dog")
    assert splits.val.labels.tolist() == [1, 0, 1]
    assert len(splits.train) + len(splits.test) == 10
    pixels = np.asarray(PIL.Image.open(io.BytesIO(val[0][2])))
    np.testing.assert_array_equal(splits.val.load(2), pixels)


def test_labels_that_are_words_are_numbered_alphabetically(tmp_path, hub):
    hub({"train": hub_split(["yak", "cat"] * 3, 0), "test": hub_split(["yak"], 1)})
    splits = open_set("hfds/words", tmp_path, val_fraction=0.4)
    assert splits.test.class_names == ("cat", "yak")
    assert splits.test.labels.tolist() == [1]


def test_a_hub_image_is_decoded_with_its_rotation(tmp_path, hub):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    images, labels = hub_split([0, 1] * 5, 0)
    images[4] = encoded(np.zeros((2, 9, 3), np.uint8), exif=exif)
    hub({"train": (images, labels), "val": (images, labels), "test": (images, labels)})
    assert open_set("hfds/turned", tmp_path).train.load(4).shape == (9, 2, 3)


def test_a_broken_hub_image_is_not_replaced_by_its_neighbour(tmp_path, hub):
    images, labels = hub_split([0, 1] * 5, 0)
    images[4] = b"broken"
    hub({"train": (images, labels), "val": (images, labels), "test": (images, labels)})
    with pytest.raises(BadImageError, match=r"image 4 of hfds/pets \(train\) cannot be read"):
        open_set("hfds/pets", tmp_path).train.load(4)


def test_a_split_with_withheld_labels_is_left_out_with_a_warning(tmp_path, hub, caplog):
    hub({"train": hub_split([0, 1] * 5, 0), "test": hub_split([-1] * 4, 1)}, {"a": 0, "b": 1})
    with caplog.at_level(logging.WARNING):
        splits = open_set("hfds/contest", tmp_path)
    assert "labels of hfds/contest (test) are withheld" in caplog.text
    assert sorted(splits.test.labels.tolist()) == [0, 1]


def test_a_class_that_train_lacks_is_named(tmp_path, hub):
    hub({"train": hub_split(["a", "b"] * 5, 0), "test": hub_split(["a", "new"], 1)})
    with pytest.raises(UserError, match="test split must be in train, 'new' of hfds/x is not"):
        open_set("hfds/x", tmp_path)


@pytest.mark.parametrize(("split", "label"), [("train", 2), ("test", 7), ("test", -1)])
def test_a_label_out_of_range_is_refused_with_the_range(tmp_path, hub, split, label):
    splits = {"train": hub_split([0, 1] * 5, 0), "test": hub_split([0, 1], 1)}
    splits[split][1][0] = label
    hub(splits, {"cat": 0, "dog": 1})
    reason = rf"labels of hfds/x \({split}\) must be .* from 0 to 1, .* got {label}$"
    with pytest.raises(UserError, match=reason):
        open_set("hfds/x", tmp_path)


def test_a_torchvision_label_out_of_range_is_refused_with_the_range(tmp_path):
    write_mnist(tmp_path)
    path = tmp_path / "MNIST" / "raw" / "t10k-labels-idx1-ubyte"
    path.write_bytes(path.read_bytes()[:-1] + b"\x0a")
    with pytest.raises(UserError, match=r"torch/mnist \(test\) must be .* 0 to 9, .* got 10"):
        open_set("torch/mnist", tmp_path)


@pytest.mark.parametrize("label", [None, [0, 1], 0.5])
def test_a_label_that_is_not_a_single_class_is_refused(tmp_path, hub, label):
    hub({"train": hub_split([0, 1, label], 0)}, {"cat": 0, "dog": 1})
    with pytest.raises(UserError, match="must have one class an image, got hfds/x with a label"):
        open_set("hfds/x", tmp_path)


def test_words_and_numbers_in_one_column_have_a_fixed_order(tmp_path, hub):
    hub({"train": hub_split(["yak", 3, "cat"] * 4, 0), "test": hub_split([3], 1)})
    assert open_set("hfds/x", tmp_path).train.class_names == ("3", "cat", "yak")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("torch/mnist", "Dataset not found"),
        ("torch/nonesuch", "Unknown torchvision dataset nonesuch"),
        ("torch/imagenet", "ILSVRC2012"),
    ],
)
def test_a_set_that_timm_cannot_open_is_refused_with_its_reason(tmp_path, source, reason):
    with pytest.raises(UserError, match=f"timm can open, got {source} .*{reason}") as caught:
        open_set(source, tmp_path)
    assert "\n" not in str(caught.value)
