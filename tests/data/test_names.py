"""Names of files and classes that are no UTF-8 or steer a terminal are shown escaped, and used."""

import os

import numpy as np
import pytest
from PIL import Image

from online_aug.data.settings import DataConfig
from online_aug.data.sources import load_splits
from online_aug.errors import UserError

LATIN, RED = b"caf\xe9", b"\x1b[31mred"


def write_class(folder, name, count=6):
    place = folder / os.fsdecode(name)
    place.mkdir()
    for number in range(count):
        pixels = np.full((8, 8, 3), 10 * number, np.uint8)
        Image.fromarray(pixels).save(place / f"{number}.png")


def splits_of(folder, **changes):
    return load_splits(DataConfig(source=str(folder), **changes))


def test_class_names_are_shown_escaped_and_their_images_are_read(tmp_path):
    for name in (LATIN, RED, b"plain"):
        write_class(tmp_path, name)
    splits = splits_of(tmp_path)
    assert set(splits.train.class_names) == {r"caf\xe9", r"\x1b[31mred", "plain"}
    str(splits).encode()  # any terminal and file takes it
    assert {splits.train.load(index).shape for index in range(len(splits.train))} == {(8, 8, 3)}


def test_two_classes_that_would_look_the_same_are_refused(tmp_path):
    for name in (LATIN, rb"caf\xe9"):
        write_class(tmp_path, name)
    with pytest.raises(UserError, match="must not both be shown as"):
        splits_of(tmp_path)


def test_an_unreadable_file_is_shown_escaped(tmp_path):
    for name in (b"a", b"b"):
        write_class(tmp_path, name)
    (tmp_path / "a" / os.fsdecode(b"\xff\x1b.png")).write_bytes(b"")
    with pytest.raises(UserError, match=r"a/\\xff\\x1b\.png cannot be read"):
        splits_of(tmp_path)
    assert splits_of(tmp_path, on_bad_image="skip").skipped[0].endswith(r"a/\xff\x1b.png")


def test_files_that_are_not_read_are_counted_by_suffix(tmp_path):
    for name in (b"a", b"b"):
        write_class(tmp_path, name)
    for name in ("1.heic", "2.HEIC", "notes.txt", "README"):
        (tmp_path / "a" / name).write_bytes(b"")
    (note,) = splits_of(tmp_path).doubts
    assert note == (
        "left out as no images that are read here: 2 .heic, 1 .txt, 1 without suffix "
        "(pip install pillow-heif reads HEIF)"
    )


def test_a_class_of_files_that_are_not_read_says_which(tmp_path):
    write_class(tmp_path, b"a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "1.heic").write_bytes(b"")
    with pytest.raises(UserError, match=r"class 'b' in .* has none; left out .* 1 \.heic \(pip"):
        splits_of(tmp_path)
