"""Our own fractals: full, varied, and the same for the same seed."""

from itertools import combinations

import numpy as np
import pytest

from online_aug.methods.fractals import draw_fractal, draw_function_system, draw_julia_set
from online_aug.seeding import numpy_rng

KINDS = [draw_function_system, draw_julia_set]


@pytest.fixture(scope="module")
def pictures():
    return [draw_fractal(48, numpy_rng("test", number)) for number in range(40)]


def test_a_picture_is_a_function_of_its_seed(pictures):
    np.testing.assert_array_equal(draw_fractal(48, numpy_rng("test", 3)), pictures[3])


def test_no_two_pictures_are_alike(pictures):
    distances = [np.abs(a.astype(float) - b).mean() for a, b in combinations(pictures, 2)]
    assert min(distances) > 10


def test_no_picture_is_empty(pictures):
    for picture in pictures:
        assert (picture.shape, picture.dtype) == ((48, 48, 3), np.uint8)
        assert picture.mean(-1).std() > 20


def test_pictures_are_of_many_colours(pictures):
    means = np.stack([picture.mean((0, 1)) for picture in pictures])
    assert (means.std(0) > 20).all()
    assert np.mean([np.ptp(picture, axis=-1).mean() for picture in pictures]) > 40


@pytest.mark.parametrize("draw", KINDS)
def test_both_kinds_stay_within_the_range_of_a_picture(draw):
    for number in range(30):
        picture = draw(32, numpy_rng("range", number))
        assert np.isfinite(picture).all()
        assert 0 <= picture.min() <= picture.max() <= 1


@pytest.mark.parametrize("draw", KINDS)
def test_a_picture_has_detail_at_the_finest_scale(draw):
    found = [np.abs(np.diff(draw(64, numpy_rng("fine", n)), axis=0)).mean() for n in range(20)]
    assert np.mean(found) > 0.02
