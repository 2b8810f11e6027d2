"""Mask files: the name of an image's mask, and the map that its values make."""

import numpy as np
import pytest

from online_aug.saliency.mask_files import mask_map, mask_names

SIZE = (60, 80)


def hard_mask(height=60, width=80, value=1):
    """The left half is object."""
    levels = np.zeros((height, width), np.float32)
    levels[:, : width // 2] = value
    return levels


@pytest.mark.parametrize(
    ("layout", "file", "names"),
    [
        ("mirror", "jay/3.jpg", ("train/jay/3.png", "jay/3.png")),
        ("stretched", "jay/a.b.jpeg", ("train/jay/a.b.png", "jay/a.b.png")),
        ("cub", "images/001.Jay/Jay_3.jpg", ("001.Jay/Jay_3.png",)),
        ("pets", "images/Beagle_3.jpg", ("Beagle_3.png",)),
        ("voc", "JPEGImages/2007_000032.jpg", ("2007_000032.png",)),
    ],
)
def test_a_layout_says_where_the_mask_of_an_image_is(layout, file, names):
    assert mask_names(file, "train", layout) == names


@pytest.mark.parametrize("value", [1, 255, 65535])
@pytest.mark.parametrize("scale", [0.5, 1, 4])
def test_a_hard_mask_of_any_size_and_depth_is_a_map_of_zeros_and_ones(value, scale):
    found = mask_map(hard_mask(int(60 * scale), int(80 * scale), value), SIZE, "mirror")
    expected = np.zeros((64, 64))
    expected[:, :32] = 1
    np.testing.assert_array_equal(found, expected)


def test_a_soft_mask_is_averaged_over_the_area_of_a_cell():
    rng = np.random.default_rng(0)
    levels = rng.integers(0, 256, (128, 128)).astype(np.float32)
    levels[0, :2] = 0, 255
    cells = levels.reshape(64, 2, 64, 2).mean((1, 3)) / 255
    np.testing.assert_allclose(mask_map(levels, (128, 128), "mirror"), cells, atol=1e-6)


def test_object_and_border_of_a_trimap_are_foreground():
    levels = np.full((64, 64), 2, np.float32)
    levels[16:48, 16:48], levels[20:44, 20:44] = 3, 1
    found = mask_map(levels, (64, 64), "pets")
    np.testing.assert_array_equal(found, levels != 2)


def test_the_largest_of_numbered_objects_is_foreground():
    levels = np.zeros((64, 64), np.float32)
    levels[:, 40:] = 255  # a border, larger than both objects
    levels[4:10, 4:10], levels[20:40, 8:30], levels[50:, :4] = 7, 3, 9
    np.testing.assert_array_equal(mask_map(levels, (64, 64), "voc"), levels == 3)


@pytest.mark.parametrize(
    ("levels", "layout", "fault"),
    [
        (np.zeros((60, 80), np.float32), "mirror", "blank"),
        (np.full((60, 80), 255, np.float32), "mirror", "blank"),
        (np.full((60, 80), 2, np.float32), "pets", "blank"),
        (hard_mask(60, 60), "mirror", "of another aspect ratio"),
        (hard_mask(value=255), "voc", "without an object"),
        (hard_mask(), "pets", "with other values than a trimap's 1, 2 and 3"),
    ],
)
def test_what_is_no_mask_is_named(levels, layout, fault):
    with pytest.raises(ValueError, match=fault):
        mask_map(levels, SIZE, layout)


def test_a_side_that_was_rounded_is_no_other_aspect_ratio():
    assert mask_map(hard_mask(30, 41), (59, 80), "mirror").shape == (64, 64)


def test_a_stretched_mask_may_have_any_shape():
    found = mask_map(hard_mask(64, 64), SIZE, "stretched")
    np.testing.assert_array_equal(found, hard_mask(64, 64))
