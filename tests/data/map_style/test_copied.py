"""The copy of a caller's data set: the same pixels, once for all, in any process."""

import pickle

import numpy as np
import pytest

from online_aug.data.image_sets import pixel_digest
from online_aug.data.images import BadImageError
from online_aug.data.map_style.copied import copy_of, open_copy
from online_aug.data.settings import DataConfig
from online_aug.data.sources import load_splits
from online_aug.errors import UserError

NAMES = ("crow", "jay")


def pictures(seed=0):
    rng = np.random.default_rng(seed)
    return [(rng.integers(0, 256, (4 + n, 5, 3), dtype=np.uint8), n % 2) for n in range(6)]


def test_the_copy_has_the_same_pixels_labels_and_names(tmp_path):
    made = copy_of(pictures(), NAMES, tmp_path)
    for copied in (open_copy(made), pickle.loads(pickle.dumps(open_copy(made)))):  # noqa: S301
        assert copied.class_names == NAMES
        assert copied.labels.tolist() == [0, 1] * 3
        for index, (image, _) in enumerate(pictures()):
            assert np.array_equal(copied.load(index), image)
            assert copied.digest(index) == pixel_digest(image)


def test_the_copy_is_made_once_for_the_same_content(tmp_path):
    folder = copy_of(pictures(), NAMES, tmp_path)
    before = (folder / "pixels.bin").stat()
    assert copy_of(pictures(), NAMES, tmp_path) == folder
    assert (folder / "pixels.bin").stat().st_mtime_ns == before.st_mtime_ns
    others = [copy_of(pictures(1), NAMES, tmp_path), copy_of(pictures(), ("a", "b"), tmp_path)]
    assert len({folder, *others}) == 3


def test_every_image_of_the_copy_is_trained_on(tmp_path):
    source = str(copy_of(pictures(), NAMES, tmp_path))
    splits = load_splits(DataConfig(source=source))
    assert (len(splits.train), len(splits.val), len(splits.test)) == (6, 0, 0)


def test_a_set_whose_images_change_is_refused_and_leaves_nothing(tmp_path):
    class Changing(list):
        def __getitem__(self, index):
            return np.random.default_rng().integers(0, 256, (4, 4, 3), dtype=np.uint8), 0

    with pytest.raises(UserError, match="^dataset must give the same pixels.*item 0.*transform="):
        copy_of(Changing([1]), NAMES, tmp_path)
    assert [
        path.name for path in tmp_path.iterdir() if path.is_dir() and "new" not in path.name
    ] == []


def test_a_copy_that_was_cut_is_named(tmp_path):
    folder = copy_of(pictures(), NAMES, tmp_path)
    copied = open_copy(folder)
    (folder / "pixels.bin").write_bytes(b"12345")
    with pytest.raises(BadImageError, match="^image 5 of .* cannot be read"):
        copied.load(5)
    (folder / "labels.npy").write_bytes(b"no array")
    with pytest.raises(UserError, match="must be the copy of a data set, it is damaged"):
        open_copy(folder)
