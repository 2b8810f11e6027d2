"""Embedded sets are written once, completely or not at all, and never over something else."""

import csv
import hashlib
import multiprocessing
from pathlib import Path

import numpy as np
import pytest

from online_aug.data import embedded
from online_aug.data.embedded import digits_arrays, write_embedded
from online_aug.data.folders import MARKER
from online_aug.data.image_sets import groups_of
from online_aug.data.images import read_image
from online_aug.data.pocket_birds import SPECIES, random_scene, random_species, render
from online_aug.data.settings import DataConfig
from online_aug.data.sources import load_splits
from online_aug.errors import UserError
from online_aug.seeding import numpy_rng


@pytest.fixture(scope="module")
def digits(embedded_root):
    data = DataConfig(source="digits", root=embedded_root)
    return load_splits(data), write_embedded("digits", embedded_root)


@pytest.fixture
def tiny(monkeypatch):
    """Replace the writer by a fast one that counts its calls in a file."""

    def write(folder, progress):
        with (folder.parent / "written.txt").open("a") as count:
            count.write("x")
        folder.mkdir()
        (folder / "image.png").write_bytes(b"pixels")

    monkeypatch.setitem(embedded._WRITERS, "digits", write)


def times_written(root):
    return len((root / "written.txt").read_text())


def test_digits_are_split_60_15_25_in_every_class(digits):
    splits, _ = digits
    parts = (splits.train, splits.val, splits.test)
    assert sum(map(len, parts)) == 1797
    for images, share in zip(parts, (0.60, 0.15, 0.25), strict=True):
        assert images.class_names == tuple("0123456789")
        counts = np.bincount(images.labels)
        whole = np.bincount(np.concatenate([part.labels for part in parts]))
        assert (np.abs(counts - share * whole) < 2).all()


def test_the_folder_holds_the_pixels_of_the_arrays(digits):
    splits, _ = digits
    images, labels = digits_arrays("test")
    order = np.argsort(labels, kind="stable")
    np.testing.assert_array_equal(splits.test.labels, labels[order])
    for place in (0, 17, 200, len(labels) - 1):
        np.testing.assert_array_equal(splits.test.load(place), images[order[place]])


def test_digits_are_white_strokes_on_black(digits):
    splits, _ = digits
    image = splits.train.load(0)
    assert image.shape == (64, 64, 3)
    assert image.max() > 220
    assert np.median(image[:, :4]) == 0


def test_the_split_of_the_digits_never_changes(digits):
    order = [digits_arrays(split)[1] for split in ("train", "val", "test")]
    content = np.concatenate(order).tobytes()
    assert hashlib.blake2b(content, digest_size=8).hexdigest() == "d06a1be7b30c23eb"


def test_the_pixels_of_the_pocket_birds_never_change():
    content = hashlib.blake2b(digest_size=8)
    rng = numpy_rng("birds")
    scenes = [
        (bird, random_scene(numpy_rng("birds", n))) for n, bird in enumerate(SPECIES.values())
    ]
    for species, scene in [*scenes, (random_species(rng), random_scene(rng))]:
        for pixels in render(species, scene):
            content.update(pixels.tobytes())
    assert content.hexdigest() == "a854197ccbc9397f"


def test_pocket_birds_are_an_ordinary_image_folder(tmp_path, monkeypatch):
    from online_aug.data import pocket_birds

    monkeypatch.setattr(pocket_birds, "IMAGES_PER_SPECIES", {"train": 2, "val": 1, "test": 1})
    splits = load_splits(DataConfig(source="pocket_birds", root=tmp_path))
    assert splits.train.class_names == tuple(sorted(pocket_birds.SPECIES))
    assert [len(images) for images in (splits.train, splits.val, splits.test)] == [24, 12, 12]
    assert splits.test.load(0).shape == (64, 64, 3)


def test_pocket_birds_are_grouped_by_family_and_habitat(tmp_path, monkeypatch):
    from online_aug.data import pocket_birds

    monkeypatch.setattr(pocket_birds, "IMAGES_PER_SPECIES", {"train": 2, "val": 1, "test": 1})
    images = load_splits(DataConfig(source="pocket_birds", root=tmp_path)).train
    groups = groups_of(images)
    with (tmp_path / "pocket_birds" / "metadata.csv").open(newline="") as file:
        told = {row["path"]: f"{row['family']} in {row['habitat']}" for row in csv.DictReader(file)}
    found = [groups.names[number] for number in groups.numbers]
    assert found == [told[f"train/{name}"] for name in images.files]
    assert set(groups.names) == set(told.values())  # those of all splits, in each


def test_a_set_is_written_once(tmp_path, tiny):
    first, second = (write_embedded("digits", tmp_path) for _ in range(2))
    assert first == second == tmp_path / "digits"
    assert times_written(tmp_path) == 1


def test_several_processes_at_once_write_a_set_once(tmp_path, tiny):
    context = multiprocessing.get_context("fork")  # children inherit the counting writer
    children = [context.Process(target=write_embedded, args=("digits", tmp_path)) for _ in range(4)]
    for child in children:
        child.start()
    for child in children:
        child.join(30)
    assert [child.exitcode for child in children] == [0] * 4
    assert times_written(tmp_path) == 1


def test_an_interrupted_write_leaves_nothing_and_can_be_repeated(tmp_path, tiny, monkeypatch):
    def interrupted(folder, progress):
        folder.mkdir()
        (folder / "half.png").write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setitem(embedded._WRITERS, "digits", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_embedded("digits", tmp_path)
    assert not (tmp_path / "digits").exists()
    folder = write_embedded("digits", tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == [MARKER, "image.png"]


def test_a_set_of_another_version_is_written_again(tmp_path, tiny, monkeypatch):
    folder = write_embedded("digits", tmp_path)
    (folder / "old.png").write_bytes(b"old")
    monkeypatch.setitem(embedded.FORMATS, "digits", embedded.FORMATS["digits"] + 1)
    write_embedded("digits", tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == [MARKER, "image.png"]
    assert times_written(tmp_path) == 2


def test_a_folder_of_the_user_is_left_alone(tmp_path):
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits" / "mine.png").write_bytes(b"mine")
    with pytest.raises(UserError, match="must be free for the data set digits"):
        write_embedded("digits", tmp_path)
    assert (tmp_path / "digits" / "mine.png").read_bytes() == b"mine"


def test_a_root_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(
        UserError, match="data.root must be a folder in which digits can be written"
    ):
        write_embedded("digits", tmp_path / "file" / "data")


def test_a_grey_file_is_read_as_colour(digits):
    _, folder = digits
    image = read_image(next(Path(folder / "val" / "3").iterdir()))
    assert (image[..., 0] == image[..., 2]).all()
