"""Streams of timm are copied once; a fake stands for readers that need TensorFlow or the hub."""

from types import SimpleNamespace

import PIL.Image
import pytest

from online_aug.data.settings import DataConfig
from online_aug.data.sources import load_splits
from online_aug.data.timm_sets import write_stream
from online_aug.errors import UserError


@pytest.mark.parametrize("source", ["tfds/cifar10", "hfids/pets"])
def test_a_missing_package_is_reported_in_one_line(tmp_path, source):
    with pytest.raises(UserError, match=f"timm can open, got {source}") as caught:
        load_splits(DataConfig(source=source, root=tmp_path))
    assert "\n" not in str(caught.value)


class Stream:
    """A stream as timm opens it: iterable, with a length and a reader that may know class names.

    It has everything we use; the real readers need TensorFlow or the hub.
    """

    def __init__(self, items, class_to_idx=None):
        self.items = items
        self.reader = SimpleNamespace(class_to_idx=class_to_idx)

    def __iter__(self):
        return iter(self.items)

    def __len__(self):
        return len(self.items)


def image():
    return PIL.Image.new("RGB", (3, 3))


def test_a_set_is_copied_once_with_every_pixel(tmp_path):
    colours = [(1, 2, 3), (250, 0, 9)]
    items = [(PIL.Image.new("RGB", (3, 2), colour), k) for k, colour in enumerate(colours)]
    folder = write_stream("tfds/x", tmp_path, {"train": Stream(items)})
    assert write_stream("tfds/x", tmp_path, {"train": Stream([])}) == folder
    found = [PIL.Image.open(path).getpixel((2, 1)) for path in sorted(folder.rglob("*.png"))]
    assert found == colours


def test_images_that_the_stream_lost_are_counted(tmp_path, caplog):
    stream = Stream([(image(), 0), (image(), 1)])
    stream.__class__ = type("Longer", (Stream,), {"__len__": lambda self: 4})
    write_stream("tfds/x", tmp_path, {"train": stream})
    assert "2 images of tfds/x (train) could not be read" in caplog.text


def test_classes_keep_the_names_and_order_of_timm(tmp_path):
    names = {"zebra": 0, "../ant": 1}
    folder = write_stream(
        "tfds/x", tmp_path, {"train": Stream([(image(), 0), (image(), 1)], names)}
    )
    assert sorted(p.name for p in (folder / "train").iterdir()) == ["00000 zebra", "00001 ..%2Fant"]


def test_withheld_labels_are_left_out(tmp_path, caplog):
    splits = {"train": Stream([(image(), 0), (image(), -1)]), "test": Stream([(image(), -1)])}
    folder = write_stream("tfds/x", tmp_path, splits)
    assert len(list(folder.rglob("*.png"))) == 1
    assert "tfds/x (test) has no labelled image" in caplog.text


def test_an_image_with_several_labels_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"one class an image, got tfds/x with a label \[0, 1\]"):
        write_stream("tfds/x", tmp_path, {"train": Stream([(image(), [0, 1])])})
    assert not (tmp_path / "tfds_x").exists()


def test_a_label_without_a_class_is_refused_with_the_range(tmp_path):
    stream = Stream([(image(), 0), (image(), 2)], {"ant": 0, "bee": 1})
    with pytest.raises(UserError, match=r"labels of tfds/x \(train\) must be .* 0 to 1, .* got 2"):
        write_stream("tfds/x", tmp_path, {"train": stream})
    assert not (tmp_path / "tfds_x").exists()


def test_a_broken_stream_leaves_nothing(tmp_path):
    def broken():
        yield image(), 0
        raise OSError("connection lost")

    stream = Stream([])
    stream.__class__ = type("Broken", (Stream,), {"__iter__": lambda self: broken()})
    with pytest.raises(UserError, match="data.source tfds/x cannot be read: connection lost"):
        write_stream("tfds/x", tmp_path, {"train": stream})
    assert not (tmp_path / "tfds_x").exists()
