import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from online_aug.labels import smooth, translation_label

CLASSES = 7
pairs = st.lists(
    st.tuples(
        st.integers(0, CLASSES - 1),
        st.integers(0, CLASSES - 1),
        st.floats(2**-6, 1, width=32),
    ),
    min_size=1,
    max_size=5,
)
gammas = st.floats(0.1, 3)


def label(rows, gamma):
    source, target, strength = zip(*rows, strict=True)
    return translation_label(
        torch.tensor(source),
        torch.tensor(target),
        torch.tensor(strength, dtype=torch.float32),
        num_classes=CLASSES,
        gamma=gamma,
    )


@pytest.mark.parametrize(
    ("strength", "gamma", "of_source", "of_target"),
    [(0.25, 0.5, 0.5, 0.5), (0.81, 0.5, 0.1, 0.9), (0.5, 2, 0.75, 0.25), (0.7, 1, 0.3, 0.7)],
)
def test_labels_are_those_worked_out_by_hand(strength, gamma, of_source, of_target):
    expected = torch.zeros(1, CLASSES)
    expected[0, 1], expected[0, 4] = of_source, of_target
    torch.testing.assert_close(label([(1, 4, strength)], gamma), expected, rtol=0, atol=1e-6)


@given(pairs, gammas)
def test_rows_are_distributions_also_for_pairs_of_one_class(rows, gamma):
    labels = label(rows, gamma)
    assert labels.shape == (len(rows), CLASSES)
    assert labels.dtype == torch.float32
    assert (labels >= 0).all()
    torch.testing.assert_close(labels.sum(1), torch.ones(len(rows)))


@given(st.integers(0, CLASSES - 1), st.floats(2**-6, 1, width=32), gammas)
def test_a_pair_of_one_class_is_one_hot(index, strength, gamma):
    expected = torch.nn.functional.one_hot(torch.tensor([index]), CLASSES).float()
    torch.testing.assert_close(label([(index, index, strength)], gamma), expected)


@given(st.floats(2**-6, 1, width=32), gammas)
def test_mass_strength_to_the_gamma_moves_to_the_target(strength, gamma):
    row = label([(2, 5, strength)], gamma)[0]
    assert float(row[5]) == pytest.approx(strength**gamma, abs=1e-5)
    assert float(row[2]) == pytest.approx(1 - strength**gamma, abs=1e-5)


def test_the_whole_trajectory_gives_the_target_alone():
    assert label([(2, 5, 1.0)], 0.8)[0].tolist() == [0, 0, 0, 0, 0, 1, 0]


@given(st.floats(0.01, 0.98), gammas)
def test_a_stronger_translation_moves_more(strength, gamma):
    weak, strong = label([(0, 1, strength), (0, 1, strength + 0.02)], gamma)[:, 1]
    assert weak < strong


@pytest.mark.parametrize("gamma", [0.0, -1.0])
def test_gamma_must_be_positive(gamma):
    with pytest.raises(ValueError, match=f"^gamma must be positive, got {gamma}$"):
        label([(0, 1, 0.5)], gamma)


@given(pairs, st.floats(0, 0.99))
def test_smoothing_keeps_distributions_and_their_order(rows, smoothing):
    labels = label(rows, 0.8)
    smoothed = smooth(labels, smoothing)
    torch.testing.assert_close(smoothed.sum(1), torch.ones(len(rows)))
    assert float(smoothed.min()) >= smoothing / CLASSES - 1e-6
    torch.testing.assert_close(
        smoothed - smoothed.mean(1, keepdim=True),
        (labels - labels.mean(1, keepdim=True)) * (1 - smoothing),
    )


def test_smoothing_writes_into_no_input():
    labels = torch.eye(3)
    smooth(labels, 0.1)
    assert torch.equal(labels, torch.eye(3))


def test_shapes_in_signatures_are_checked_while_testing():
    with pytest.raises(TypeCheckError):
        translation_label(
            torch.tensor([0, 1]),
            torch.tensor([1]),
            torch.tensor([0.5]),
            num_classes=2,
            gamma=1.0,
        )
