"""Masks of any mode are read as one value for each pixel; sizes are those of the upright image."""

import numpy as np
import PIL.Image
import pytest

from online_aug.data.images import MAX_PIXELS, BadImageError, image_size, read_levels

RNG = np.random.default_rng(0)
HARD = RNG.random((5, 7)) < 0.5
SOFT = RNG.integers(0, 256, (5, 7), dtype=np.uint8)
DEEP = RNG.integers(0, 65536, (5, 7), dtype=np.uint16)


def saved(path, image, **options):
    image.save(path, **options)
    return path


@pytest.fixture
def path(tmp_path):
    return tmp_path / "mask.png"


@pytest.mark.parametrize("values", [HARD, SOFT, DEEP], ids=["1 bit", "8 bits", "16 bits"])
def test_grey_values_are_those_of_the_file(path, values):
    np.testing.assert_array_equal(
        read_levels(saved(path, PIL.Image.fromarray(values))) > 0, values > 0
    )
    if values.dtype != np.bool_:
        np.testing.assert_array_equal(read_levels(path), values)


def test_of_colours_the_largest_channel_counts(path):
    pixels = np.stack([SOFT, SOFT // 2, SOFT // 3], axis=2)
    np.testing.assert_array_equal(read_levels(saved(path, PIL.Image.fromarray(pixels))), SOFT)


def test_entries_of_a_palette_are_colours_or_numbers(path):
    image = PIL.Image.fromarray(HARD.astype(np.uint8), mode="P")
    image.putpalette([0, 0, 0, 128, 0, 30])
    np.testing.assert_array_equal(read_levels(saved(path, image)), HARD * 128)
    np.testing.assert_array_equal(read_levels(path, numbers_palette=True), HARD)


@pytest.mark.parametrize("opacity", [SOFT, np.full_like(SOFT, 255)], ids=["cut-out", "opaque"])
def test_a_cut_out_is_its_opacity(path, opacity):
    grey = RNG.integers(0, 256, (5, 7), dtype=np.uint8)
    image = PIL.Image.fromarray(np.stack([grey, grey, grey, opacity], axis=2), "RGBA")
    expected = opacity if np.ptp(opacity) else grey
    np.testing.assert_array_equal(read_levels(saved(path, image)), expected)


@pytest.mark.parametrize("content", [b"", b"no image", None], ids=["empty", "text", "missing"])
def test_a_broken_file_is_one_error(path, content):
    if content is not None:
        path.write_bytes(content)
    for read in (read_levels, image_size):
        with pytest.raises(BadImageError, match="mask.png cannot be read: "):
            read(path)


def test_a_mask_of_too_many_pixels_is_not_decoded(path, monkeypatch):
    saved(path, PIL.Image.fromarray(SOFT))
    monkeypatch.setattr("online_aug.data.images.MAX_PIXELS", 34)
    assert MAX_PIXELS > 34
    with pytest.raises(BadImageError, match="more than the limit of 34"):
        read_levels(path)


@pytest.mark.parametrize(("orientation", "size"), [(1, (5, 7)), (3, (5, 7)), (6, (7, 5))])
def test_the_size_is_that_of_the_upright_image(tmp_path, orientation, size):
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path / "a.jpg", PIL.Image.fromarray(SOFT), exif=exif)
    assert image_size(path) == size
