import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from online_aug.generation.gate import rejection


@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_black_grey_and_white_images_are_blank(level):
    assert rejection(torch.full((3, 16, 16), level)) == "blank"


def test_noise_of_less_than_a_grey_level_is_blank():
    image = 0.5 + 0.002 * torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert rejection(image) == "blank"


@given(st.sampled_from([float("nan"), float("inf"), -float("inf")]), st.integers(0, 3 * 64 - 1))
def test_one_pixel_that_is_no_number_is_enough(value, place):
    image = torch.linspace(0, 1, 3 * 64)
    image[place] = value
    assert rejection(image.reshape(3, 8, 8)) == "not finite"


@pytest.mark.parametrize("shape", [(3, 8, 8), (3, 5, 31)])
def test_an_image_with_contrast_passes(shape):
    assert rejection(torch.rand(shape, generator=torch.Generator().manual_seed(0))) is None


def test_a_small_dark_figure_on_white_passes():
    image = torch.ones(3, 64, 64)
    image[:, 20:30, 20:30] = 0
    assert rejection(image) is None
