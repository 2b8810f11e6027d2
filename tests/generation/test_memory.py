"""The number of slots from what one and two images take."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from online_aug.generation.memory import CPU_SLOTS, MOST_SLOTS, chosen_slots, fitting_slots
from online_aug.generation.models import load_img2img


@given(fixed=st.integers(0, 1000), each=st.integers(1, 1000), budget=st.integers(0, 100_000))
def test_what_is_chosen_fits_and_twice_as_many_would_not_or_are_not_wanted(fixed, each, budget):
    slots = fitting_slots(lambda count: fixed + count * each, budget)
    assert slots == 1 or fixed + slots * each <= budget
    assert 2 * slots > MOST_SLOTS or fixed + 2 * slots * each > budget


def test_a_network_whose_memory_does_not_grow_takes_the_most():
    assert fitting_slots(lambda count: 100, 1000) == MOST_SLOTS


@pytest.mark.parametrize(("wanted", "slots"), [("auto", CPU_SLOTS), (3, 3)])
def test_a_cpu_takes_a_fixed_number_unless_told_otherwise(tiny_model, wanted, slots):
    assert chosen_slots(wanted, load_img2img(tiny_model, "float32"), 64) == slots
