"""What an embedded editor is taught: nine instructions, each seen and none destroying."""

from itertools import combinations

import numpy as np
import pytest

from online_aug.config.methods import MethodConfig
from online_aug.data.embedded import digits_arrays
from online_aug.data.pocket_birds import random_scene, random_species, render
from online_aug.seeding import numpy_rng
from tools.embedded_model.instructions import INSTRUCTIONS, apply_instruction


@pytest.fixture(scope="module")
def pictures():
    rng = numpy_rng("pictures")
    birds = [render(random_species(rng), random_scene(rng))[0] for _ in range(4)]
    return [*digits_arrays("train")[0][:4], *birds]


def test_the_paper_s_prompts_are_taught():
    assert tuple(INSTRUCTIONS) == MethodConfig().prompts


def edit(prompt, picture, seed=0):
    return apply_instruction(prompt, picture, numpy_rng("test", seed))


def distance(one, other):
    return np.abs(one.astype(float) - other).mean() / 255


@pytest.mark.parametrize("prompt", INSTRUCTIONS)
def test_an_edit_is_seen(prompt, pictures):
    assert min(distance(edit(prompt, picture), picture) for picture in pictures) > 0.05


def test_any_two_instructions_make_different_pictures(pictures):
    edits = {
        prompt: np.stack([edit(prompt, picture) for picture in pictures]) for prompt in INSTRUCTIONS
    }
    assert min(distance(edits[a], edits[b]) for a, b in combinations(edits, 2)) > 0.07


@pytest.mark.parametrize("prompt", INSTRUCTIONS)
def test_a_digit_keeps_its_stroke_lighter_than_what_is_around_it(prompt, pictures):
    for digit in pictures[:4]:
        light = edit(prompt, digit).mean(-1)
        assert light[digit[..., 0] > 200].mean() > light[digit[..., 0] < 20].mean() + 20


@pytest.mark.parametrize("prompt", INSTRUCTIONS)
def test_an_edit_is_a_function_of_picture_and_seed_and_writes_into_no_input(prompt, pictures):
    kept = pictures[5].copy()
    first = edit(prompt, pictures[5], seed=1)
    np.testing.assert_array_equal(pictures[5], kept)
    np.testing.assert_array_equal(edit(prompt, pictures[5], seed=1), first)
    assert not np.array_equal(edit(prompt, pictures[5], seed=2), first)
    assert (first.shape, first.dtype) == ((64, 64, 3), np.uint8)
