"""Masks pixel by pixel, at any size."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from online_aug.methods.diffusemix import MASKS, source_share

sides = st.integers(1, 40)


def inside(mask, row, column, height, width):
    """Signed distance of a pixel's centre to the border, worked out alone."""
    y, x = (row + 0.5) / height, (column + 0.5) / width
    disc = (1 / (2 * np.pi)) ** 0.5 - ((y - 0.5) ** 2 + (x - 0.5) ** 2) ** 0.5
    return {
        "left": 0.5 - x,
        "right": x - 0.5,
        "top": 0.5 - y,
        "bottom": y - 0.5,
        "centre": disc,
        "rim": -disc,
    }[mask]


@pytest.mark.parametrize("mask", MASKS)
@given(sides, sides, st.sampled_from([0.0, 0.1, 0.3, 1.0]))
def test_a_mask_is_the_one_worked_out_pixel_by_pixel(mask, height, width, seam):
    share = source_share(mask, height, width, seam=seam)
    expected = np.zeros((height, width))
    for row in range(height):
        for column in range(width):
            distance = inside(mask, row, column, height, width)
            hard = float(distance > 0)
            expected[row, column] = min(max(0.5 + distance / seam, 0), 1) if seam else hard
    np.testing.assert_allclose(share, expected, atol=1e-5)


@pytest.mark.parametrize("mask", MASKS)
@given(sides, sides)
def test_a_hard_seam_makes_every_pixel_the_one_or_the_other(mask, height, width):
    assert set(np.unique(source_share(mask, height, width, seam=0))) <= {0.0, 1.0}


@pytest.mark.parametrize("mask", MASKS)
def test_half_of_the_image_is_real(mask):
    for seam in (0.0, 0.2):
        assert source_share(mask, 200, 300, seam=seam).mean() == pytest.approx(
            0.5, abs=0.02
        )  # a soft disc a little more


@pytest.mark.parametrize(
    ("mask", "other"), [("left", "right"), ("right", "left"), ("top", "bottom"), ("bottom", "top")]
)
def test_a_half_is_where_its_name_says(mask, other):
    share = source_share(mask, 8, 8, seam=0)
    ends = {"left": share[:, 0], "right": share[:, -1], "top": share[0], "bottom": share[-1]}
    assert ends[mask].all()
    assert not ends[other].any()


@pytest.mark.parametrize("size", [32, 64, 333])
def test_a_seam_grows_with_the_image(size):
    share = source_share("left", size, size, seam=0.25)[0]
    assert ((share > 0) & (share < 1)).mean() == pytest.approx(0.25, abs=2 / size)
