"""The probability of a synthetic sample over the epochs and by class."""

import numpy as np
import pytest
from mixing_samples import IMAGES, GreyImages, make_order

from online_aug.config.sections import MixingConfig
from online_aug.errors import UserError
from online_aug.loader.slots import probability_of


def over(epochs, **mixing):
    found = probability_of(MixingConfig(**mixing), GreyImages(), epochs)
    return [found.at(epoch) for epoch in range(epochs)]


def test_without_an_end_it_stays():
    assert over(4, synthetic_probability=0.3) == [0.3] * 4


def test_a_line_goes_from_the_first_epoch_to_the_last():
    found = over(5, synthetic_probability=0.2, final_probability=0.6)
    assert found == pytest.approx([0.2, 0.3, 0.4, 0.5, 0.6])


def test_half_a_cosine_leaves_slowly_and_arrives_slowly():
    found = over(5, synthetic_probability=0.8, final_probability=0, probability_schedule="cosine")
    assert found == pytest.approx([0.8, 0.6828, 0.4, 0.1172, 0.0], abs=1e-3)


def test_a_run_of_one_epoch_has_the_first_probability():
    assert over(1, synthetic_probability=0.2, final_probability=0.6) == [0.2]


def test_the_slots_follow_the_schedule():
    mixing = MixingConfig(synthetic_probability=0, final_probability=1)
    order = make_order(repeats=100, probability=probability_of(mixing, GreyImages(), 3))
    shares = [order.is_synthetic(epoch).mean() for epoch in range(3)]
    assert shares == pytest.approx([0, 0.5, 1], abs=0.03)


def test_a_class_of_its_own_keeps_its_own():
    images = GreyImages()
    mixing = MixingConfig(
        synthetic_probability=0.5, final_probability=0.1, class_probability={"class 0": 1.0}
    )
    order = make_order(repeats=100, probability=probability_of(mixing, images, 2))
    is_first = images.labels[order.indices(1)] == 0
    is_synthetic = order.is_synthetic(1)
    assert is_synthetic[is_first].all()
    assert is_synthetic[~is_first].mean() == pytest.approx(0.1, abs=0.03)


def test_a_constant_schedule_draws_like_a_fixed_probability():
    fixed, ending = (
        make_order(probability=probability_of(MixingConfig(**mixing), GreyImages(), 3))
        for mixing in ({}, {"final_probability": 0.3})
    )
    assert all(np.array_equal(fixed.is_synthetic(e), ending.is_synthetic(e)) for e in range(3))


def test_an_unknown_class_is_one_line():
    mixing = MixingConfig(class_probability={"sparrow": 0.5})
    with pytest.raises(UserError, match="must name classes of data.source, got 'sparrow'; known:"):
        probability_of(mixing, GreyImages(IMAGES), 3)


@pytest.mark.parametrize(
    ("mixing", "expected"),
    [
        ({"synthetic_probability": 0}, False),
        ({"synthetic_probability": 0, "final_probability": 0.1}, True),
        ({"synthetic_probability": 0, "class_probability": {"a": 0.1}}, True),
        ({"synthetic_probability": 0, "class_probability": {"a": 0}}, False),
    ],
)
def test_a_run_is_synthetic_if_any_probability_is_above_0(mixing, expected):
    assert MixingConfig(**mixing).is_synthetic is expected
