"""Training and evaluation transforms: sizes, the effect of each setting, and reproducibility."""

import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from online_aug.data.settings import DataConfig
from online_aug.data.transforms import (
    Frame,
    TrainTransform,
    eval_transform,
    fit_square,
    normalise,
    train_transform,
)
from online_aug.seeding import torch_rng

STILL = {"shift": 0.0, "rotate_degrees": 0.0, "scale": (1.0, 1.0), "hflip": 0.0}


def noise(height, width, seed=0):
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch_rng(seed))


def still(size=32, **settings):
    return TrainTransform(frame=Frame(size=size), **{**STILL, **settings})


def spot(x, y, size=33):
    """Return a black image with a white disc, whose position can be measured."""
    row = torch.arange(size) - (size - 1) / 2
    inside = (row[None, :] - x) ** 2 + (row[:, None] - y) ** 2 < 9
    return (inside * 255).to(torch.uint8).expand(3, -1, -1).contiguous()


def centre(image):
    weight = image[0].double()
    row = torch.arange(weight.shape[0], dtype=torch.float64) - (weight.shape[0] - 1) / 2
    return (
        (weight.sum(0) * row).sum().item() / weight.sum().item(),
        (weight.sum(1) * row).sum().item() / weight.sum().item(),
    )


@given(height=st.integers(1, 90), width=st.integers(1, 90), size=st.integers(4, 10))
def test_any_image_becomes_the_square_of_the_configuration(height, width, size):
    data = DataConfig(image_size=size * 8)
    image = noise(height, width)
    for result in (train_transform(data)(image, torch_rng(0)), eval_transform(data)(image)):
        assert result.shape == (3, size * 8, size * 8)
        assert result.dtype == torch.uint8


@given(height=st.integers(1, 50), width=st.integers(1, 50), value=st.integers(0, 255))
def test_a_flat_image_stays_flat(height, width, value):
    image = torch.full((3, height, width), value, dtype=torch.uint8)
    moved = train_transform(DataConfig(hflip=0.5))(image, torch_rng(value))
    assert (moved == value).all()


def test_evaluation_leaves_an_image_of_the_right_size_unchanged():
    image = noise(64, 64)
    assert torch.equal(eval_transform(DataConfig(image_size=64))(image), image)


def test_training_with_all_settings_off_changes_nothing():
    image = noise(32, 32)
    assert torch.equal(still()(image, torch_rng(0)), image)


def test_a_flip_alone_mirrors_exactly():
    image = noise(32, 32)
    assert torch.equal(still(hflip=1.0)(image, torch_rng(0)), image.flip(2))


def test_a_flip_during_interpolation_mirrors_too():
    image = noise(32, 32)
    tiny = {"scale": (1 + 1e-9, 1 + 1e-9)}  # forces the interpolation, moves nothing
    assert torch.equal(still(hflip=1.0, **tiny)(image, torch_rng(0)), image.flip(2))


def test_a_shift_moves_by_at_most_its_fraction_and_uses_the_whole_range():
    moved = [centre(still(33, shift=0.2)(spot(0, 0), torch_rng(k))) for k in range(200)]
    places = torch.tensor(moved).abs() / 33
    assert places.max() <= 0.205
    assert (places.max(dim=0).values > 0.18).all()


def test_a_rotation_keeps_distances_and_stays_within_its_angle():
    angles = []
    for k in range(100):
        x, y = centre(still(33, rotate_degrees=30.0)(spot(9, 0), torch_rng(k)))
        assert (x**2 + y**2) ** 0.5 == pytest.approx(9, abs=0.3)
        angles.append(torch.rad2deg(torch.atan2(torch.tensor(y), torch.tensor(x))).item())
    assert 27 < max(angles) < 31
    assert -31 < min(angles) < -27


def test_a_zoom_above_one_makes_things_larger():
    x, _ = centre(still(33, scale=(1.3, 1.3))(spot(7, 0), torch_rng(0)))
    assert x == pytest.approx(1.3 * 7, abs=0.3)


def test_a_zoom_below_one_fills_in_with_the_border():
    image = torch.full((3, 32, 32), 200, dtype=torch.uint8)
    assert (still(scale=(0.5, 0.5))(image, torch_rng(0)) == 200).all()


def test_the_image_depends_on_the_seed():
    transform, image = train_transform(DataConfig()), noise(40, 56)
    first, same, other = (transform(image, torch_rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_the_global_generator_is_not_used():
    before = torch.get_rng_state()
    train_transform(DataConfig())(noise(20, 30), torch_rng(0))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_input_is_left_unchanged():
    image = noise(64, 64)
    copy = image.clone()
    train_transform(DataConfig(hflip=1.0))(image, torch_rng(0))
    assert torch.equal(image, copy)


def test_changing_one_setting_does_not_change_what_another_draws():
    centres = [
        centre(still(33, shift=0.2, rotate_degrees=angle)(spot(0, 0), torch_rng(5)))
        for angle in (0.0, 90.0)
    ]
    torch.testing.assert_close(torch.tensor(centres[0]), torch.tensor(centres[1]), atol=0.1, rtol=0)


def test_shrinking_averages_instead_of_picking_pixels():
    checkers = (torch.arange(64)[:, None] + torch.arange(64)) % 2 * 255
    small = fit_square(checkers.to(torch.uint8).expand(3, -1, -1), 16)
    assert ((small[:, 2:-2, 2:-2].int() - 127).abs() <= 2).all()


@pytest.mark.parametrize("make", [train_transform, eval_transform])
def test_transforms_can_be_pickled(make):
    transform = make(DataConfig())
    assert pickle.loads(pickle.dumps(transform)) == transform


def test_normalising_subtracts_the_mean_and_divides_by_the_deviation():
    images = torch.stack([noise(5, 9, seed) for seed in range(3)])
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    columns = [torch.tensor(values).view(3, 1, 1) for values in (mean, std)]
    expected = (images.float() / 255 - columns[0]) / columns[1]
    torch.testing.assert_close(normalise(images, mean, std), expected, atol=1e-5, rtol=1e-5)
