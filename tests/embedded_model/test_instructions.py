"""The nine instructions of the embedded editor: each can be seen, none destroys the image."""

from itertools import combinations

import numpy as np
import pytest

from online_aug.data.embedded import digits_arrays
from online_aug.data.pocket_birds import random_scene, random_species, render
from online_aug.methods.diffusemix import DiffuseMixSettings
from online_aug.seeding import numpy_rng
from tools.embedded_model.instructions import INSTRUCTIONS, apply_instruction


@pytest.fixture(scope="module")
def images():
    rng = numpy_rng("images")
    birds = [render(random_species(rng), random_scene(rng))[0] for _ in range(4)]
    return [*digits_arrays("train")[0][:4], *birds]


def test_the_paper_s_prompts_are_taught():
    assert tuple(INSTRUCTIONS) == DiffuseMixSettings(name="diffusemix").prompts


def edit(prompt, image, seed=0):
    return apply_instruction(prompt, image, numpy_rng("test", seed))


def distance(one, other):
    return np.abs(one.astype(float) - other).mean() / 255


@pytest.mark.parametrize("prompt", INSTRUCTIONS)
def test_an_edit_can_be_seen(prompt, images):
    assert min(distance(edit(prompt, image), image) for image in images) > 0.05


def test_any_two_instructions_make_different_images(images):
    edits = {prompt: np.stack([edit(prompt, image) for image in images]) for prompt in INSTRUCTIONS}
    assert min(distance(edits[a], edits[b]) for a, b in combinations(edits, 2)) > 0.07


@pytest.mark.parametrize("prompt", INSTRUCTIONS)
def test_a_digit_keeps_its_stroke_lighter_than_what_is_around_it(prompt, images):
    for digit in images[:4]:
        light = edit(prompt, digit).mean(-1)
        assert light[digit[..., 0] > 200].mean() > light[digit[..., 0] < 20].mean() + 20


@pytest.mark.parametrize("prompt", INSTRUCTIONS)
def test_an_edit_is_a_function_of_image_and_seed_and_writes_into_no_input(prompt, images):
    kept = images[5].copy()
    first = edit(prompt, images[5], seed=1)
    np.testing.assert_array_equal(images[5], kept)
    np.testing.assert_array_equal(edit(prompt, images[5], seed=1), first)
    assert not np.array_equal(edit(prompt, images[5], seed=2), first)
    assert (first.shape, first.dtype) == ((64, 64, 3), np.uint8)
