import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from online_aug.seeding import numpy_global_state, numpy_rng, torch_rng

parts = st.lists(st.integers(0, 2**32) | st.text(max_size=5), min_size=1, max_size=4)


def draw(*entropy):
    return numpy_rng(*entropy).integers(2**63, size=4).tolist()


@given(parts)
def test_the_same_entropy_gives_the_same_numbers(entropy):
    assert draw(*entropy) == draw(*entropy)


@given(st.integers(0, 1000), st.integers(0, 1000), st.integers(1, 1000))
def test_seed_and_rank_do_not_add_up(seed, rank, difference):
    assert draw(seed + difference, rank) != draw(seed, rank + difference)


@given(st.integers(0, 1000), st.text(max_size=5), st.text(max_size=5))
def test_two_purposes_have_unrelated_streams(seed, one, other):
    assert (draw(one, seed) == draw(other, seed)) == (one == other)


@given(parts, st.sampled_from([0, "0", ""]))
def test_one_more_part_is_another_stream(entropy, more):
    assert draw(*entropy) != draw(*entropy, more)


def test_a_stream_is_the_same_on_every_machine():
    assert draw("plan", 0, 1)[0] == 1408101758175133386
    assert int(torch.randint(2**62, (), generator=torch_rng(7))) == 1407639518939636932


def test_drawing_leaves_the_global_states_alone():
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    numpy_rng(1).random()
    torch.rand(3, generator=torch_rng(1))
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()  # noqa: NPY002


def test_a_library_draws_from_our_stream_inside_the_context():
    drawn = []
    for _ in range(2):
        with numpy_global_state(numpy_rng("mixup", 3)):
            drawn.append(np.random.beta(1, 1))  # noqa: NPY002
        np.random.random()  # noqa: NPY002
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize("fails", [False, True])
def test_the_global_state_is_put_back_also_after_an_error(fails):
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    try:
        with numpy_global_state(numpy_rng(3)):
            np.random.random()  # noqa: NPY002
            if fails:
                raise RuntimeError
    except RuntimeError:
        assert fails
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002
