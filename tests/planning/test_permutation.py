"""A keyed permutation: each number once, the same order everywhere, no memory."""

import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from online_aug.planning import Permutation

sizes = st.integers(1, 200) | st.sampled_from([255, 256, 257, 1023, 1025])
seeds = st.integers(0, 2**62)


@given(sizes, seeds)
def test_every_number_comes_once(size, seed):
    order = Permutation(size, seed)
    assert sorted(order) == list(range(size))


@given(sizes, seeds)
def test_the_place_of_a_number_is_where_it_stands(size, seed):
    order = Permutation(size, seed)
    assert [order.index(number) for number in order] == list(range(size))


@given(sizes, seeds)
def test_many_at_once_are_the_same_as_one_by_one(size, seed):
    order, places = Permutation(size, seed), np.arange(size)
    numbers = order.at(places)
    assert numbers.tolist() == list(order)
    assert order.places(numbers).tolist() == places.tolist()


@given(st.integers(2**33, 2**48), st.data())
def test_places_of_huge_sizes_are_found_too(size, data):
    order = Permutation(size, "huge")
    place = data.draw(st.integers(0, size - 1))
    number = order[place]
    assert 0 <= number < size
    assert order.index(number) == place
    assert order.at(np.array([place])).tolist() == [number]


def test_a_million_come_once_each_too():
    numbers = Permutation(1_000_000, "many").at(np.arange(1_000_000))
    assert (np.bincount(numbers, minlength=1_000_000) == 1).all()


def test_memory_does_not_depend_on_the_size():
    def size_of(order):
        return sum(sys.getsizeof(value) for value in vars(order).values())

    assert size_of(Permutation(2**40, 0)) <= size_of(Permutation(10, 0)) + 64


@given(st.integers(30, 500), seeds)
def test_another_seed_gives_another_order(size, seed):
    assert list(Permutation(size, seed)) != list(Permutation(size, seed + 1))
    assert list(Permutation(size, "a", seed)) != list(Permutation(size, "b", seed))


def test_the_order_of_a_seed_is_always_the_same():
    assert list(Permutation(12, "order", 0, 0)) == [0, 5, 8, 1, 9, 7, 2, 11, 4, 3, 6, 10]


def test_numbers_stand_at_all_places_about_equally_often():
    orders = np.array([list(Permutation(12, seed)) for seed in range(1200)])
    for place in range(12):
        counts = np.bincount(orders[:, place], minlength=12)
        assert 55 < counts.min() <= counts.max() < 150  # about five standard deviations


def test_neighbours_are_torn_apart():
    order = Permutation(100_000, 0).at(np.arange(100_000))
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.02


def test_it_is_read_like_a_list():
    order = Permutation(7, 1)
    assert order[-1] == list(order)[-1]
    assert order[2:5] == list(order)[2:5]
    assert len(Permutation(0, 1)) == 0
    with pytest.raises(IndexError):
        order[7]
    for wrong in (7, -1):
        with pytest.raises(ValueError, match="number must be below 7"):
            order.index(wrong)
