"""Splits and cuts have the requested sizes, and lose or repeat nothing."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from online_aug.data.cuts import few_shot, long_tail, stratified_split
from online_aug.seeding import numpy_rng

FRACTIONS = (0.7, 0.1, 0.2)


def labels_of(sizes, seed=0):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    return numpy_rng("test", seed).permutation(labels)


sizes_of_classes = st.lists(st.integers(3, 60), min_size=2, max_size=12)


@given(sizes=sizes_of_classes, seed=st.integers(0, 99))
def test_a_split_contains_every_index_once(sizes, seed):
    parts = stratified_split(labels_of(sizes), FRACTIONS, numpy_rng(seed))
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(sum(sizes)))


@given(sizes=sizes_of_classes)
def test_each_part_has_its_share_of_every_class_and_at_least_one_image(sizes):
    labels = labels_of(sizes)
    for part, share in zip(
        stratified_split(labels, FRACTIONS, numpy_rng(0)), FRACTIONS, strict=True
    ):
        counts = np.bincount(labels[part], minlength=len(sizes))
        assert counts.min() >= 1
        # One by rounding, and one more for each other part that needed its one image.
        assert (np.abs(counts - share * np.array(sizes)) < 2).all()


def test_a_class_smaller_than_the_number_of_parts_cannot_be_split():
    with pytest.raises(ValueError, match="at least 3 images to be split, got 2 of class 1"):
        stratified_split(labels_of([9, 2]), FRACTIONS, numpy_rng(0))


@pytest.mark.parametrize("fractions", [(0.5, 0.4), (1.0, 0.0), (1.2, -0.2)])
def test_fractions_must_be_positive_and_sum_to_one(fractions):
    with pytest.raises(ValueError, match="fractions must be positive and sum to 1"):
        stratified_split(labels_of([9, 9]), fractions, numpy_rng(0))


@pytest.mark.parametrize(("cut", "value"), [(few_shot, 5), (long_tail, 0.1)])
def test_a_cut_depends_only_on_the_seed(cut, value):
    labels = labels_of([30] * 4)
    first, same, other = (cut(labels, value, numpy_rng(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, same)
    assert not np.array_equal(first, other)


@given(sizes=sizes_of_classes, count=st.integers(1, 3))
def test_the_few_shot_cut_keeps_the_same_number_of_every_class(sizes, count):
    labels = labels_of(sizes)
    kept = few_shot(labels, count, numpy_rng(0))
    assert np.bincount(labels[kept]).tolist() == [count] * len(sizes)


def test_a_smaller_few_shot_cut_is_part_of_a_larger_one():
    labels = labels_of([20] * 5)
    five, ten = (few_shot(labels, count, numpy_rng(3)) for count in (5, 10))
    assert set(five) <= set(ten)


def test_the_choice_in_one_class_does_not_depend_on_the_others():
    small, large = np.repeat([0, 1], [20, 5]), np.repeat([0, 1, 2], [20, 9, 9])
    first, second = (few_shot(labels, 3, numpy_rng(0)) for labels in (small, large))
    np.testing.assert_array_equal(first[first < 20], second[second < 20])


def test_asking_for_more_examples_than_a_class_has_is_refused():
    with pytest.raises(ValueError, match="at most 4, the size of class 1, got 5"):
        few_shot(labels_of([9, 4]), 5, numpy_rng(0))


@pytest.mark.parametrize("factor", [1.0, 0.1, 0.02, 0.01])
def test_the_smallest_class_over_the_largest_is_the_imbalance_factor(factor):
    labels = labels_of([500] * 10)
    counts = np.bincount(labels[long_tail(labels, factor, numpy_rng(0))])
    assert counts.min() / counts.max() == pytest.approx(factor)


def test_class_sizes_fall_exponentially_as_in_diff_mix():
    labels = labels_of([1000] * 5)
    counts = np.bincount(labels[long_tail(labels, 0.0001**0.5, numpy_rng(0))])
    np.testing.assert_array_equal(counts, [1000, 316, 100, 32, 10])


def test_larger_classes_stay_larger():
    labels = labels_of([40, 100, 70])
    counts = np.bincount(labels[long_tail(labels, 0.1, numpy_rng(0))])
    np.testing.assert_array_equal(np.argsort(counts), [0, 2, 1])


@given(sizes=sizes_of_classes, factor=st.floats(0.001, 1))
def test_the_imbalance_factor_holds_for_any_class_sizes(sizes, factor):
    labels = labels_of(sizes)
    counts = np.bincount(labels[long_tail(labels, factor, numpy_rng(0))], minlength=len(sizes))
    assert counts.min() >= 1
    assert abs(counts.min() - max(1, factor * counts.max())) <= 0.5 + 1e-9


def test_the_published_cut_has_the_sizes_of_diff_mix_s_code():
    """CUB-200-2011 has 5,994 training images: 30 of most classes, 29 of six."""
    labels = labels_of([30] * 194 + [29] * 6)
    counts = np.bincount(labels[long_tail(labels, 0.01, numpy_rng(0), is_published=True)])
    expected = [max(1, int(5994 / 200 * 0.01 ** (k / 198))) for k in range(200)]
    np.testing.assert_array_equal(counts, expected)
    assert counts.sum() == 1242
    assert len(long_tail(labels, 0.01, numpy_rng(0))) == 1318


@pytest.mark.parametrize("factor", [0.0, 1.5])
def test_an_imbalance_factor_out_of_range_is_refused(factor):
    with pytest.raises(ValueError, match=r"imbalance_factor must be in \(0, 1\]"):
        long_tail(labels_of([5, 5]), factor, numpy_rng(0))
