"""Saliency maps: their range, their size, and the spectral residual."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from online_aug.saliency import scaled, spectral_residual, upscaled

seeds = st.integers(0, 2**32 - 1)


def random_maps(seed, count=2, side=7):
    return torch.rand(count, side, side, generator=torch.Generator().manual_seed(seed))


@given(seeds)
def test_scaled_maps_span_0_to_1_and_keep_their_order(seed):
    maps = random_maps(seed) * 5 - 2
    result = scaled(maps)
    assert result.amin((1, 2)).tolist() == [0, 0]
    assert result.amax((1, 2)).tolist() == pytest.approx([1, 1])
    assert torch.equal(result.flatten(1).argsort(), maps.flatten(1).argsort())


def test_a_flat_map_becomes_zero():
    assert not scaled(torch.full((1, 3, 3), 0.4)).any()


def test_an_enlarged_map_spans_0_to_1():
    large = upscaled(random_maps(0), (31, 17))
    assert large.shape == (2, 31, 17)
    assert large.amax((1, 2)).tolist() == pytest.approx([1, 1])


def by_hand(image):
    """Compute the spectral residual of one grey image of 64 px, pixel by pixel."""
    spectrum = np.fft.fft2(image)
    amplitude = np.log(np.abs(spectrum))
    padded = np.pad(amplitude, 1, mode="edge")
    around = [[padded[y : y + 3, x : x + 3].mean() for x in range(64)] for y in range(64)]
    back = np.fft.ifft2(np.exp(amplitude - around + 1j * np.angle(spectrum)))
    power = np.pad(np.abs(back) ** 2, 5, mode="edge")
    places = np.arange(11) - 5
    bell = np.exp(-(places[:, None] ** 2 + places**2) / (2 * 2.5**2))
    bell /= bell.sum()
    blurred = np.array(
        [[(power[y : y + 11, x : x + 11] * bell).sum() for x in range(64)] for y in range(64)]
    )
    return (blurred - blurred.min()) / (blurred.max() - blurred.min())


def test_the_spectral_residual_is_the_paper_s():
    grey = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    images = torch.from_numpy(np.tile(grey, (1, 3, 1, 1)))
    found = spectral_residual(images)[0].numpy()
    np.testing.assert_allclose(found, by_hand(grey / 255.0), atol=2e-3)


def test_an_object_on_a_plain_background_stands_out():
    image = np.random.default_rng(0).integers(90, 110, (64, 64), dtype=np.uint8)
    image[40:48, 10:18] = 250
    images = torch.from_numpy(np.tile(image, (1, 3, 1, 1)))
    peak = int(spectral_residual(images)[0].argmax())
    assert 36 <= peak // 64 <= 52
    assert 6 <= peak % 64 <= 22


@given(st.integers(8, 90), st.integers(8, 90))
def test_spectral_residual_takes_images_of_any_size(height, width):
    images = torch.randint(256, (2, 3, height, width), dtype=torch.uint8)
    maps = spectral_residual(images)
    assert maps.shape == (2, 64, 64)
    assert maps.isfinite().all()
