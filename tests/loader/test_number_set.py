"""The set of numbers from which images are drawn."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from online_aug.loader.choices import NumberSet

SIZE = 5000
CHANGES = st.lists(st.tuples(st.booleans(), st.integers(0, SIZE - 1)), max_size=200)


def members(numbers):
    return [numbers[place] for place in range(len(numbers))]


@given(CHANGES)
def test_the_nth_number_is_that_of_a_sorted_list(changes):
    numbers, plain = NumberSet(SIZE), set()
    for is_added, number in changes:
        if is_added:
            numbers.add(number)
            plain.add(number)
        else:
            numbers.discard(number)
            plain.discard(number)
    assert members(numbers) == sorted(plain)
    assert all(number in numbers for number in plain)


@given(CHANGES, st.integers(0, SIZE), st.integers(0, 3000))
def test_what_was_in_stays_in_when_the_set_grows_and_its_oldest_leave(changes, oldest, more):
    numbers = NumberSet(SIZE)
    plain = {number for _, number in changes}
    for number in plain:
        numbers.add(number)
    numbers.grow(SIZE + more)
    numbers.discard_below(oldest)
    assert members(numbers) == sorted(number for number in plain if number >= oldest)
    if more:
        numbers.add(SIZE + more - 1)
        assert numbers[len(numbers) - 1] == SIZE + more - 1


@pytest.mark.parametrize("place", [-1, 2])
def test_a_place_outside_is_refused(place):
    numbers = NumberSet(10)
    numbers.add(3)
    numbers.add(7)
    with pytest.raises(IndexError, match=rf"^place must be below 2, got {place}$"):
        numbers[place]
