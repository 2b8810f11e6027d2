"""The cache of a configuration, opened with its codec and limits."""

from pathlib import Path

import numpy as np
import pytest

from cache.codecs import CODECS
from online_aug.config import Config
from online_aug.data.image_sets import FolderSet, Subset
from online_aug.errors import UserError
from online_aug.loader.pool import check_writable, codec_for


def folder(*files):
    labels = np.zeros(len(files), np.int64)
    return FolderSet(root=Path("photos"), files=files, class_names=("bird",), labels=labels)


class Pixels:
    """Images that come from no file."""

    class_names = ("bird",)
    labels = np.zeros(2, np.int64)


@pytest.mark.parametrize("name", ["a.jpg", "deep/a.JPEG", "a.jpe", "a.jfif"])
def test_images_beside_jpeg_files_are_stored_as_jpeg(name):
    assert codec_for("auto", folder(name)) == "jpeg"


@pytest.mark.parametrize("name", ["a.png", "a.webp", "jpg.bmp", "a.jpg.tif"])
def test_images_beside_other_files_are_stored_without_loss(name):
    assert CODECS[codec_for("auto", folder(name))].is_lossless


def test_the_kind_of_most_files_counts():
    assert codec_for("auto", folder("a.jpg", "b.jpg", "c.png")) == "jpeg"
    assert codec_for("auto", folder("a.jpg", "b.png")) == "webp_lossless"


def test_only_the_files_of_a_cut_count():
    mixed = folder("a.jpg", "b.jpg", "c.png")
    assert codec_for("auto", Subset(mixed, np.array([2]))) == "webp_lossless"


def test_images_beside_images_without_files_are_stored_without_loss():
    assert codec_for("auto", Pixels()) == "webp_lossless"


@pytest.mark.parametrize("codec", CODECS)
def test_a_codec_that_is_named_is_used(codec):
    assert codec_for(codec, folder("a.jpg")) == codec


def test_a_cache_that_cannot_be_written_is_refused_before_the_start(store, monkeypatch):
    config = Config(cache={"path": store.path})
    check_writable(config)
    monkeypatch.setattr("os.access", lambda path, mode: False)  # as on a read-only disk
    with pytest.raises(UserError, match=r"^cache\.path must be writable, also for a run that only"):
        check_writable(config)
