"""The statistics of a comparison."""

import math

import pytest

from online_aug.comparison.paired import Estimate, difference, estimate


def test_the_interval_is_students_t_over_the_seeds():
    found = estimate([0.90, 0.92, 0.94])
    # t(0.975, 2) = 4.3027, standard deviation 0.02
    assert found.mean == pytest.approx(0.92)
    assert found.half_width == pytest.approx(4.3027 * 0.02 / math.sqrt(3), rel=1e-4)
    assert found.text() == "92.0 ± 5.0"


def test_one_seed_has_a_mean_and_no_interval():
    assert estimate([0.5]).text() == "50.0"
    assert estimate([]).text() == "-"


def test_a_difference_is_of_the_seeds_that_both_have():
    found = difference({0: 0.9, 1: 0.8, 2: 0.1}, {0: 0.8, 1: 0.7, 3: 0.0})
    assert found.seeds == 2
    assert found.mean == pytest.approx(0.1)
    assert found.half_width == pytest.approx(0, abs=1e-9)
    assert Estimate(0.05, 0.01, 3).text(signed=True) == "+5.0 ± 1.0"
