"""GrabCut on an image, seeded by a saliency map, and the encoding of its masks."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from online_aug.saliency import grab_cut
from online_aug.saliency.masks import decode_mask, encode_mask, is_fallback, resized_masks

SIDE = 48


def scene(seed=0):
    """A red disc on green ground, both noisy, and a map that is highest near its left edge."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    disc = np.hypot(y - 0.5, x - 0.5) < 0.3
    colours = np.where(disc[..., None], (180, 60, 50), (60, 160, 70))
    image = np.clip(colours + rng.normal(0, 12, (SIDE, SIDE, 3)), 0, 255).astype(np.uint8)
    values = np.exp(-((y - 0.5) ** 2 + (x - 0.4) ** 2) / 0.03).astype(np.float32)
    return image, values, disc


def overlap(one, other):
    return (one & other).sum() / (one | other).sum()


def test_the_cut_is_the_object_though_the_map_shows_only_a_part_of_it():
    image, values, disc = scene()
    assert overlap(values > 0.5, disc) < 0.6
    assert overlap(grab_cut(image, values), disc) > 0.97


def test_the_cut_is_the_same_in_every_thread_and_leaves_the_image_alone():
    image, values, _ = scene()
    before = image.copy()
    with ThreadPoolExecutor(4) as pool:
        cuts = list(pool.map(lambda _: grab_cut(image, values), range(8)))
    assert all((cut == cuts[0]).all() for cut in cuts)
    np.testing.assert_array_equal(image, before)


def test_a_map_without_a_peak_has_no_cut():
    image, values, _ = scene()
    assert grab_cut(image, np.full_like(values, 0.25)) is None


@given(st.integers(1, 21), st.booleans(), st.integers(0, 2**32))
def test_a_mask_and_its_flag_survive_the_cache(side, flag, seed):
    mask = np.random.default_rng(seed).random((side, side)) < 0.5
    content = encode_mask(mask, is_fallback=flag)
    assert len(content) == 3 + (side * side + 7) // 8
    np.testing.assert_array_equal(decode_mask(content), mask)
    assert is_fallback(content) == flag


@pytest.mark.parametrize("side", [8, 16, 64])
def test_a_resized_mask_covers_the_same_part_of_the_image(side):
    mask = np.zeros((1, 32, 32), np.bool_)
    mask[0, 8:16, :24] = True
    found = resized_masks(mask, side)[0]
    expected = np.zeros((side, side), np.bool_)
    expected[side // 4 : side // 2, : side * 3 // 4] = True
    np.testing.assert_array_equal(found, expected)
