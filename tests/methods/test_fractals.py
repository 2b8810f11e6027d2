"""Fractals: how they are drawn, and the bank that keeps them or the pictures of a folder."""

import pickle
from itertools import combinations

import numpy as np
import pytest
from PIL import Image

from online_aug.errors import UserError
from online_aug.methods.fractals import (
    FractalConfig,
    bank_of,
    draw_fractal,
    draw_function_system,
    draw_julia_set,
)
from online_aug.seeding import numpy_rng

KINDS = [draw_function_system, draw_julia_set]


@pytest.fixture(scope="module")
def pictures():
    return [draw_fractal(48, numpy_rng("test", number)) for number in range(40)]


def test_a_picture_is_a_function_of_its_seed(pictures):
    np.testing.assert_array_equal(draw_fractal(48, numpy_rng("test", 3)), pictures[3])


def test_no_two_pictures_are_alike(pictures):
    distances = [np.abs(a.astype(float) - b).mean() for a, b in combinations(pictures, 2)]
    assert min(distances) > 10


def test_no_picture_is_empty(pictures):
    for picture in pictures:
        assert (picture.shape, picture.dtype) == ((48, 48, 3), np.uint8)
        assert picture.mean(-1).std() > 20


def test_pictures_are_of_many_colours(pictures):
    means = np.stack([picture.mean((0, 1)) for picture in pictures])
    assert (means.std(0) > 20).all()
    assert np.mean([np.ptp(picture, axis=-1).mean() for picture in pictures]) > 40


@pytest.mark.parametrize("draw", KINDS)
def test_both_kinds_stay_within_the_range_of_a_picture(draw):
    for number in range(30):
        picture = draw(32, numpy_rng("range", number))
        assert np.isfinite(picture).all()
        assert 0 <= picture.min() <= picture.max() <= 1


@pytest.mark.parametrize("draw", KINDS)
def test_a_picture_has_detail_at_the_finest_scale(draw):
    found = [np.abs(np.diff(draw(64, numpy_rng("fine", n)), axis=0)).mean() for n in range(20)]
    assert np.mean(found) > 0.02


@pytest.fixture
def make_bank(tmp_path):
    def make(side=16, **changes):
        settings = {"path": tmp_path / "banks", "count": 5}
        return bank_of(FractalConfig(**settings | changes), side)

    return make


def write_pictures(folder, count, size=(30, 20)):
    folder.mkdir()
    for number in range(count):
        Image.new("RGB", size, (number, 0, 0)).save(folder / f"{number}.png")
    return folder


def test_a_bank_holds_our_fractals_in_order(make_bank):
    bank = make_bank(seed=3)
    bank.ensure()
    assert len(bank) == 5
    np.testing.assert_array_equal(bank[4], draw_fractal(16, numpy_rng("fractal", 3, 4)))


def test_a_bank_is_written_once(make_bank):
    make_bank().ensure()
    written = make_bank().path.stat()
    make_bank().ensure()
    assert make_bank().path.stat() == written


@pytest.mark.parametrize("change", [{"side": 17}, {"count": 4}, {"seed": 1}])
def test_other_settings_are_another_bank(make_bank, change):
    assert make_bank(**change).path != make_bank().path


def test_a_bank_pickles_without_its_pictures_and_reads_the_same(make_bank):
    bank = make_bank()
    bank.ensure()
    expected = bank[2]
    copied = pickle.dumps(bank)
    assert len(copied) < 1000
    np.testing.assert_array_equal(pickle.loads(copied)[2], expected)


def test_a_picture_cannot_be_written_to(make_bank):
    bank = make_bank()
    bank.ensure()
    with pytest.raises(ValueError, match="read-only"):
        bank[0][0] = 1


def test_a_folder_s_pictures_are_cut_to_squares(make_bank, tmp_path):
    bank = make_bank(folder=write_pictures(tmp_path / "own", 3))
    bank.ensure()
    assert [picture[0, 0, 0] for picture in bank] == [0, 1, 2]
    assert bank[0].shape == (16, 16, 3)


def test_of_a_large_folder_a_part_is_taken_that_depends_on_the_seed(make_bank, tmp_path):
    folder = write_pictures(tmp_path / "own", 30)
    first = make_bank(folder=folder)
    assert len(first) == len(set(first.pictures)) == 5
    assert make_bank(folder=folder).pictures == first.pictures
    assert make_bank(folder=folder, seed=1).pictures != first.pictures


def test_a_changed_folder_is_another_bank(make_bank, tmp_path):
    folder = write_pictures(tmp_path / "own", 2)
    before = make_bank(folder=folder).path
    Image.new("RGB", (9, 9)).save(folder / "1.png")
    assert make_bank(folder=folder).path != before


@pytest.mark.parametrize("exists", [True, False])
def test_a_folder_without_images_is_refused(make_bank, tmp_path, exists):
    folder = tmp_path / "own"
    if exists:
        folder.mkdir()
        (folder / "notes.txt").write_text("no picture")
    with pytest.raises(
        UserError, match=f"^fractals.folder must be a folder with images, got {folder}"
    ):
        make_bank(folder=folder)


def test_a_broken_picture_is_named(make_bank, tmp_path):
    folder = write_pictures(tmp_path / "own", 2)
    (folder / "1.png").write_bytes(b"broken")
    with pytest.raises(UserError, match=r"^image .*1\.png cannot be read"):
        make_bank(folder=folder).ensure()


def test_a_place_that_cannot_be_written_is_refused(make_bank, tmp_path):
    (tmp_path / "banks").write_text("a file")
    with pytest.raises(UserError, match=r"^fractals\.path must be a writable folder, got "):
        make_bank().ensure()


def test_a_bank_that_was_not_written_is_refused(make_bank):
    with pytest.raises(UserError, match=r"^fractals\.path has no readable bank "):
        make_bank()[0]
