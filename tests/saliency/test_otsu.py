"""Otsu thresholds and masks against scikit-image and OpenCV."""

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from skimage.filters import threshold_otsu

from online_aug.saliency import otsu_masks, otsu_thresholds

seeds = st.integers(0, 2**32 - 1)
sides = st.integers(1, 40)


def random_maps(seed, height, width, count=3):
    """Return maps with two modes of random position, width and size, or with few values."""
    rng = np.random.default_rng(seed)
    low = rng.normal(rng.random(), 0.1, (count, height, width))
    high = rng.normal(1 + rng.random(), 0.3, (count, height, width))
    maps = np.where(rng.random((count, height, width)) < rng.random(), low, high)
    return torch.from_numpy(maps.round(2) if seed % 2 else maps)


@given(seeds, sides, sides)
def test_thresholds_are_those_of_scikit_image(seed, height, width):
    maps = random_maps(seed, height, width)
    expected = [threshold_otsu(each.numpy()) for each in maps]
    assert otsu_thresholds(maps).tolist() == expected


@given(seeds, sides, sides)
def test_masks_are_those_of_scikit_image(seed, height, width):
    maps = random_maps(seed, height, width)
    expected = [each.numpy() > threshold_otsu(each.numpy()) for each in maps]
    assert (otsu_masks(maps).numpy() == np.stack(expected)).all()


@given(seeds)
def test_masks_of_byte_images_are_those_of_opencv_except_at_the_threshold_itself(seed):
    # OpenCV excludes the threshold level from the mask; scikit-image cuts in the middle of a bin of
    # 255/256 of a level, so that above 127 the level itself is included.
    maps = (random_maps(seed, 24, 24) * 80).clamp(0, 255).round()
    maps[:, 0, 0], maps[:, 0, 1] = 0, 255
    for mask, each in zip(otsu_masks(maps), maps, strict=True):
        level, theirs = cv2.threshold(
            each.numpy().astype(np.uint8), 0, 1, cv2.THRESH_BINARY + cv2.THRESH_OTSU
        )
        expected = torch.from_numpy(theirs.astype(bool))
        assert torch.equal(mask & (each != level), expected)


@given(seeds)
def test_a_threshold_does_not_depend_on_the_batch(seed):
    maps = random_maps(seed, 9, 7)
    alone = torch.cat([otsu_thresholds(each[None]) for each in maps])
    assert torch.equal(otsu_thresholds(maps), alone)


@given(seeds, st.sampled_from([2.0, 0.25]))
def test_masks_do_not_depend_on_the_scale_of_the_map(seed, factor):
    maps = random_maps(seed, 9, 7)
    assert torch.equal(otsu_masks(maps * factor), otsu_masks(maps))


@pytest.mark.parametrize("value", [0.0, 1.0, 0.3])
def test_a_flat_map_has_an_empty_mask(value):
    maps = torch.full((2, 5, 6), value)
    torch.testing.assert_close(otsu_thresholds(maps), maps[:, 0, 0].double())
    assert not otsu_masks(maps).any()
