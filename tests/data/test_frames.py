"""A frame cuts a square out of an image of any size, in the middle or at random."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms

from online_aug.data.transforms import Frame, fit_square
from online_aug.seeding import torch_rng


def ramp(height, width):
    """Return an image whose red is the row, green the column, and blue 255 everywhere."""
    rows, columns = torch.arange(height)[:, None], torch.arange(width)[None, :]
    whole = [rows.expand(height, width), columns.expand(height, width)]
    return torch.stack([*whole, torch.full((height, width), 255)]).to(torch.uint8)


@given(
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    crop=st.sampled_from(["centre", "random", "resized"]),
    mode=st.sampled_from(["squash", "shortest", "longest"]),
    seed=st.integers(0, 99),
)
def test_an_image_of_any_size_becomes_the_square(height, width, crop, mode, seed):
    frame = Frame(size=24, resize=mode, resize_px=30, crop=crop, pad_px=3)
    image = ramp(height, width)
    assert frame.random(image, torch_rng(seed)).shape == (3, 24, 24)
    assert frame.central(image).shape == (3, 24, 24)


def test_a_centre_crop_takes_the_middle():
    assert torch.equal(
        Frame(size=20, resize_px=40).central(ramp(40, 40)), ramp(40, 40)[:, 10:30, 10:30]
    )


def test_resizing_the_shortest_side_keeps_the_aspect_and_cuts_the_rest():
    found = Frame(size=40, resize="shortest").central(ramp(40, 80))
    assert torch.equal(found, ramp(40, 80)[:, :, 20:60])


def test_resizing_the_longest_side_keeps_everything_and_adds_black():
    found = Frame(size=80, resize="longest").central(ramp(40, 80))
    assert torch.equal(found[:, 20:60], ramp(40, 80))
    assert not found[:, :20].any()
    assert not found[:, 60:].any()


def test_random_crops_reach_every_position_and_no_other():
    frame, image = Frame(size=30, resize_px=34, crop="random"), ramp(34, 34)
    corners = {
        tuple(frame.random(image, torch_rng(seed))[:2, 0, 0].tolist()) for seed in range(400)
    }
    assert corners == {(row, column) for row in range(5) for column in range(5)}


def test_random_crops_of_a_padded_image_show_the_border_on_every_side():
    frame = Frame(size=32, crop="random", pad_px=4)
    cuts = [frame.random(ramp(32, 32), torch_rng(seed))[2] for seed in range(100)]
    sides = torch.stack([torch.stack([cut[0], cut[-1], cut[:, 0], cut[:, -1]]) for cut in cuts])
    assert (sides == 0).all(2).any(0).all()


def test_resized_crops_cover_the_configured_range_of_areas():
    frame, image = Frame(size=50, crop="resized", area=(0.25, 0.5)), ramp(200, 200)
    areas = []
    for seed in range(300):
        rows, columns, _ = frame.random(image, torch_rng(seed)).float()
        areas.append(float((rows.max() - rows.min()) * (columns.max() - columns.min())) / 200**2)
    assert 0.2 < min(areas) < 0.28
    assert 0.45 < max(areas) < 0.52


@pytest.mark.parametrize(("height", "width"), [(10, 100), (100, 10)])
def test_a_resized_crop_takes_the_middle_if_no_drawn_crop_fits(height, width):
    frame = Frame(size=16, crop="resized", area=(1.0, 1.0))
    rows, columns, _ = frame.random(ramp(height, width), torch_rng(0)).float()
    along = columns if width > height else rows
    assert along.mean() == pytest.approx(49.5, abs=1)


def test_a_square_of_the_right_size_is_returned_as_it_is():
    image = ramp(32, 32)
    assert fit_square(image, 32) is image


@given(
    height=st.integers(17, 90),
    width=st.integers(17, 90),
    size=st.integers(16, 40),
    more=st.integers(0, 9),
)
def test_shortest_then_centre_is_torchvision_s_resize_and_centre_crop(height, width, size, more):
    noise = np.random.default_rng([height, width]).integers(256, size=(height, width, 3))
    pixels = np.asarray(noise, np.uint8)
    published = transforms.Compose([transforms.Resize(size + more), transforms.CenterCrop(size)])
    theirs = np.asarray(published(Image.fromarray(pixels)), int)
    frame = Frame(size=size, resize="shortest", resize_px=size + more)
    ours = frame.central(torch.from_numpy(pixels).permute(2, 0, 1)).permute(1, 2, 0)
    # The same pixels are cut; Pillow rounds after each of its two passes.
    assert np.abs(ours.numpy() - theirs).max() <= 1


@pytest.mark.parametrize(
    ("resize", "crop", "follows"),
    [
        ("squash", "centre", False),
        ("squash", "random", False),
        ("shortest", "centre", True),
        ("longest", "random", True),
        ("squash", "resized", True),
    ],
)
def test_a_squashed_image_is_cut_alike_whatever_its_aspect_was(resize, crop, follows):
    assert Frame(size=24, resize=resize, crop=crop).follows_aspect is follows
