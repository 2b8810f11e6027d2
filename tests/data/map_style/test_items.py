"""A caller's own data set: what is taken, and what is refused in one line."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import IterableDataset, Subset, TensorDataset

from online_aug.data.map_style.items import Items
from online_aug.errors import UserError

NAMES = ("crow", "jay")
PIXELS = np.arange(6 * 5 * 3, dtype=np.uint8).reshape(6, 5, 3)
CHANNELS_FIRST = torch.from_numpy(PIXELS).permute(2, 0, 1)


class Named(list):
    """Pairs in a list that knows its classes."""

    classes = list(NAMES)


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(PIXELS),
        PIXELS,
        CHANNELS_FIRST,
        torch.from_numpy(PIXELS),
        CHANNELS_FIRST.float() / 255,
        Image.fromarray(PIXELS).convert("RGBA"),
    ],
    ids=["pil", "array", "tensor", "tensor, channels last", "floats", "opaque"],
)
def test_pixels_are_the_same_in_any_form(image):
    picture, label = Items(Named([(image, 1)])).read(0)
    assert np.array_equal(picture, PIXELS)
    assert label == 1


@pytest.mark.parametrize("image", [PIXELS[..., 0], PIXELS[..., :1], CHANNELS_FIRST[:1]])
def test_grey_images_get_three_equal_channels(image):
    picture, _ = Items(Named([(image, 0)])).read(0)
    assert np.array_equal(picture, np.repeat(PIXELS[..., :1], 3, axis=2))


@pytest.mark.parametrize("label", [1, np.int32(1), torch.tensor(1), np.array([1])])
def test_a_label_is_a_whole_number_in_any_form(label):
    assert Items(Named([(PIXELS, label)])).read(0)[1] == 1


@pytest.mark.parametrize(
    ("label", "got"),
    [
        (0.5, "float 0.5"),
        (True, "bool True"),
        ("crow", "str 'crow'"),
        (torch.tensor([0, 1]), "Tensor of int64, shape \\(2,\\)"),
        (np.array([0.2, 0.8]), "ndarray of float64"),
        (torch.tensor(1.0), "Tensor of float32"),
    ],
)
def test_float_and_one_hot_labels_are_refused(label, got):
    with pytest.raises(UserError, match=f"^label of item 0 .* whole number, got {got}.*argmax$"):
        Items(Named([(PIXELS, label)])).read(0)


@pytest.mark.parametrize("label", [-1, 2])
def test_a_label_without_a_class_is_refused(label):
    with pytest.raises(UserError, match=rf"^label of item 0 .* must be below 2.*got {label}$"):
        Items(Named([(PIXELS, label)])).read(0)


@pytest.mark.parametrize(
    ("item", "got"),
    [
        (PIXELS, "ndarray without a label"),
        ((PIXELS,), "tuple without a label"),
        ({"image": PIXELS, "caption": "a crow"}, "a mapping of image, caption"),
    ],
)
def test_images_without_labels_are_refused(item, got):
    with pytest.raises(UserError, match=rf"^item 0 of dataset must be a pair.*got {got}$"):
        Items(Named([item])).read(0)


def test_a_mapping_of_image_and_label_is_taken():
    picture, label = Items(Named([{"image": PIXELS, "label": 1, "id": "a"}])).read(0)
    assert np.array_equal(picture, PIXELS)
    assert label == 1


def test_images_of_unequal_types_are_refused():
    items = Items(Named([(PIXELS, 0), (Image.fromarray(PIXELS), 0)]))
    items.read(0)
    with pytest.raises(UserError, match="must be of one type, got ndarray of uint8 first and PIL"):
        items.read(1)


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (CHANNELS_FIRST.float() - 100, "must be bytes or in \\[0, 1\\], got floats beyond"),
        (torch.full((3, 4, 5), float("nan")), "must be bytes or in \\[0, 1\\]"),
        (CHANNELS_FIRST.int(), "must be bytes or floats in \\[0, 1\\], got torch.int32"),
        (torch.zeros(2, 4, 5, 6), "must have rows, columns and channels, got shape"),
        (torch.zeros(7, 4, 5), "must have 1, 3 or 4 channels"),
        ("crow.jpg", "must be a PIL image, array or tensor, got str"),
    ],
)
def test_what_is_no_image_is_refused(image, reason):
    with pytest.raises(UserError, match=f"^image of item 0 of dataset {reason}"):
        Items(Named([(image, 0)])).read(0)


class Stream(IterableDataset):
    def __iter__(self):
        yield PIXELS, 0


@pytest.mark.parametrize("dataset", [Stream(), iter([(PIXELS, 0)]), {(PIXELS.tobytes(), 0)}])
def test_a_set_that_can_only_be_iterated_is_refused(dataset):
    with pytest.raises(UserError, match="^dataset must be map-style, with __len__ and __getitem__"):
        Items(dataset, NAMES)


def test_an_empty_set_is_refused():
    with pytest.raises(UserError, match="^dataset must hold images, got an empty one$"):
        Items([], NAMES)


def test_an_error_of_the_caller_s_own_code_names_the_item():
    class Broken(Named):
        def __getitem__(self, index):
            raise OSError("the disk is gone")

    with pytest.raises(UserError, match="^item 0 of dataset cannot be read: the disk is gone$"):
        Items(Broken([0])).read(0)


def test_the_names_of_a_subset_are_those_of_the_whole():
    assert Items(Subset(Named([(PIXELS, 0)] * 3), [1])).class_names == NAMES


def test_names_have_to_come_from_somewhere():
    dataset = TensorDataset(torch.zeros(2, 3, 4, 4), torch.tensor([0, 1]))
    assert Items(dataset, NAMES).class_names == NAMES
    with pytest.raises(UserError, match="^class_names must be given"):
        Items(dataset)


@pytest.mark.parametrize("names", [("crow", "crow"), ("crow", ""), ("crow", 3)])
def test_names_that_are_none_are_refused(names):
    with pytest.raises(UserError, match="^class_names must"):
        Items([(PIXELS, 0)], names)
