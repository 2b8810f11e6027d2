import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from online_aug.labels import one_hot, rare_class_weights, translation_label

CLASSES = 7
classes = st.integers(0, CLASSES - 1)
strengths = st.floats(2**-6, 1)
gammas = st.floats(0.1, 3)


def label(source, target, strength, gamma):
    return translation_label(source, target, strength, num_classes=CLASSES, gamma=gamma)


@pytest.mark.parametrize(
    ("strength", "gamma", "of_source", "of_target"),
    [(0.25, 0.5, 0.5, 0.5), (0.81, 0.5, 0.1, 0.9), (0.5, 2, 0.75, 0.25), (0.7, 1, 0.3, 0.7)],
)
def test_labels_are_those_worked_out_by_hand(strength, gamma, of_source, of_target):
    expected = np.zeros(CLASSES)
    expected[1], expected[4] = of_source, of_target
    np.testing.assert_allclose(label(1, 4, strength, gamma), expected, atol=1e-6)


@given(classes, classes, strengths, gammas)
def test_a_label_is_a_distribution_also_if_both_classes_are_one(source, target, strength, gamma):
    found = label(source, target, strength, gamma)
    assert (found.shape, found.dtype) == ((CLASSES,), np.float32)
    assert (found >= 0).all()
    assert found.sum() == pytest.approx(1, abs=1e-6)


@given(classes, strengths, gammas)
def test_a_pair_of_one_class_is_one_hot(index, strength, gamma):
    np.testing.assert_allclose(label(index, index, strength, gamma), one_hot(index, CLASSES))


@given(strengths, gammas)
def test_mass_strength_to_the_gamma_moves_to_the_target(strength, gamma):
    found = label(2, 5, strength, gamma)
    assert found[5] == pytest.approx(strength**gamma, abs=1e-5)
    assert found[2] == pytest.approx(1 - strength**gamma, abs=1e-5)


def test_the_whole_trajectory_gives_the_target_alone():
    assert label(2, 5, 1.0, 0.8).tolist() == [0, 0, 0, 0, 0, 1, 0]


@given(st.floats(0.01, 0.98), gammas)
def test_a_stronger_translation_moves_more(strength, gamma):
    assert label(0, 1, strength, gamma)[1] < label(0, 1, strength + 0.02, gamma)[1]


@pytest.mark.parametrize("gamma", [0.0, -1.0])
def test_gamma_must_be_positive(gamma):
    with pytest.raises(ValueError, match=f"^gamma must be positive, got {gamma}$"):
        label(0, 1, 0.5, gamma)


@pytest.mark.parametrize("balance", [0.5, 1.0])
def test_rare_classes_are_drawn_more_often(balance):
    weights = rare_class_weights((2, 4), balance)
    assert sum(weights) == pytest.approx(1)
    assert weights[0] / weights[1] == pytest.approx(((4 + 1) / (2 + 1)) ** balance)


def test_without_balance_all_classes_are_drawn_alike():
    assert rare_class_weights((2, 4), 0.0) is None
