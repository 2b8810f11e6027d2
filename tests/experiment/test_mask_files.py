"""A folder of masks as the foregrounds of an experiment."""

from pathlib import Path

import numpy as np
import pytest
from experiment_samples import make_experiment
from PIL import Image
from published_samples import write_cub, write_pets, write_waterbirds

from online_aug.config import Config
from online_aug.data.image_sets import FolderSet
from online_aug.data.images import image_size
from online_aug.data.published.sets import published_splits
from online_aug.errors import UserError
from online_aug.experiment.foregrounds import ensure_saliency
from online_aug.experiment.mask_files import MaskFiles
from online_aug.experiment.saliency import check_saliency

NAMES = [f"{name}/{number}" for name in ("crow", "jay") for number in range(4)]


def box(width=8):
    """Mark the upper left of an image of 16 x 20 px."""
    mask = np.zeros((16, 20), np.bool_)
    mask[:8, :width] = True
    return mask


@pytest.fixture
def masks(tmp_path):
    """A folder that has a mask for each training image."""
    for number, name in enumerate(NAMES):
        write_mask(tmp_path, name, box(6 + number))
    return tmp_path / "masks"


def write_mask(folder, name, mask):
    path = folder / "masks" / "train" / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask).save(path)
    return path


@pytest.fixture
def experiment_of(tmp_path, tiny_model, masks):
    def make(data=None, **saliency):
        return make_experiment(
            tmp_path,
            tiny_model,
            data=data or {},
            finetune={"enabled": False},
            method={"name": "sgd_mix", "candidates": [2, 4], "strength": 0.5},
            saliency={"method": "masks", "masks": masks} | saliency,
        )

    return make


def refusal_of(experiment):
    with pytest.raises(UserError) as caught:
        check_saliency(experiment)
    assert not experiment.config.cache.path.exists()
    return str(caught.value)


def table_of(experiment):
    ensure_saliency(experiment)
    return experiment.saliency.table(experiment.saliency.version, experiment.data.digests)


def test_the_foreground_of_an_image_is_the_mask_at_its_relative_path(experiment_of):
    experiment = experiment_of()
    check_saliency(experiment)
    table = table_of(experiment)
    for place, source in enumerate(experiment.data.sources):
        share = (6 + place) / 40
        assert table.source_share(table.place(source.digest)) == pytest.approx(share, abs=0.03)


def test_a_folder_without_that_of_the_split_will_do(experiment_of, masks):
    (masks / "train").rename(masks.parent / "flat")
    check_saliency(experiment_of(masks=masks.parent / "flat"))


def test_another_content_of_a_mask_is_another_version(experiment_of, tmp_path):
    before = experiment_of().saliency.version
    assert experiment_of().saliency.version == before
    write_mask(tmp_path, NAMES[5], box(2))
    assert experiment_of().saliency.version != before


def test_all_masks_that_cannot_be_used_are_told_at_once(experiment_of, tmp_path, masks):
    for name in NAMES[:4]:
        (masks / "train" / f"{name}.png").unlink()
    write_mask(tmp_path, NAMES[4], np.zeros((16, 20), np.bool_))
    write_mask(tmp_path, NAMES[5], np.ones((16, 20), np.bool_))
    write_mask(tmp_path, NAMES[6], box()[:, :16])
    write_mask(tmp_path, NAMES[7], box()).write_bytes(b"no image")
    assert refusal_of(experiment_of()) == (
        "saliency.masks must hold a usable mask for each of the 8 training images, got "
        "4 missing (train/crow/0.png, train/crow/1.png, train/crow/2.png, ...), "
        "2 blank (train/jay/0.png, train/jay/1.png), "
        "1 of another aspect ratio (train/jay/2.png), 1 unreadable (train/jay/3.png); "
        "saliency.layout says how a folder is laid out; "
        "saliency.layout=stretched takes masks that were stretched; "
        "data.on_bad_image=skip leaves such images out"
    )


def test_an_image_whose_mask_is_left_out_is_refused_as_a_source(experiment_of, masks, caplog):
    (masks / "train" / f"{NAMES[2]}.png").unlink()
    experiment = experiment_of({"on_bad_image": "skip"})
    check_saliency(experiment)
    assert "of 8 masks: 1 missing (train/crow/2.png); left out" in caplog.text
    table, digest = table_of(experiment), experiment.data.sources[2].digest
    assert table.source_share(table.place(digest)) == 0
    refused = {
        request.source_digest: experiment.methods["sgd_mix"].refusal(
            request, experiment.context_for(request)
        )
        for request in experiment.plan
    }
    assert refused[digest] == "saliency: source mask too small"


def test_a_folder_of_other_masks_is_refused_though_bad_ones_are_skipped(experiment_of, masks):
    (masks / "train").rename(masks / "else")
    assert "got 8 missing" in refusal_of(experiment_of({"on_bad_image": "skip"}))


def test_a_folder_that_is_not_there_is_refused(experiment_of, tmp_path):
    assert refusal_of(experiment_of(masks=tmp_path / "none")).startswith(
        "saliency.masks must be a folder with a mask for each training image, got "
    )


@pytest.mark.parametrize("layout", ["cub", "pets"])
def test_the_folders_of_published_sets_are_found(experiment_of, tmp_path, layout):
    folder = (
        tmp_path / "published" / {"cub": "segmentations", "pets": "annotations/trimaps"}[layout]
    )
    for number, name in enumerate(NAMES):
        path = folder / f"{name if layout == 'cub' else number % 4}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        values = np.where(box(), 1, 2) if layout == "pets" else box() * 255
        Image.fromarray(values.astype(np.uint8)).save(path)
    experiment = experiment_of(masks=tmp_path / "published", layout=layout)
    check_saliency(experiment)
    assert table_of(experiment).source_share(0) == pytest.approx(0.2, abs=0.03)


@pytest.mark.slow
def test_pocket_birds_bring_masks_of_their_own(experiment_of, tmp_path, monkeypatch):
    from online_aug.data import pocket_birds

    monkeypatch.setattr(pocket_birds, "IMAGES_PER_SPECIES", {"train": 1, "val": 1, "test": 1})
    experiment = experiment_of({"source": "pocket_birds", "root": tmp_path / "data"}, masks=None)
    check_saliency(experiment)
    table, folder = table_of(experiment), tmp_path / "data" / "pocket_birds"
    for place, source in enumerate(experiment.data.sources):
        file = experiment.splits.train.files[place]
        truth = np.asarray(Image.open(folder / "masks" / "train" / file)) > 0
        np.testing.assert_array_equal(table.masks([source.digest], 64)[0], truth)


def test_other_data_sets_bring_none(experiment_of):
    with pytest.raises(ValueError, match=r"saliency\.masks must be a folder .* got null"):
        experiment_of(masks=None)


@pytest.mark.parametrize(
    ("source", "write", "layout", "folder"),
    [
        ("cub200", write_cub, "cub", "segmentations/{0.parent.name}"),
        ("waterbirds", write_waterbirds, "cub", "segmentations/{0.parent.name}"),
        ("oxford_pets", write_pets, "pets", "annotations/trimaps"),
    ],
)
def test_the_masks_of_published_sets_lie_where_their_authors_put_them(
    tmp_path, source, write, layout, folder
):
    write(tmp_path)
    train = published_splits(source, tmp_path)["train"]
    for place in range(len(train)):
        image = train.path(place)
        path = tmp_path / "masks" / folder.format(image) / f"{image.stem}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        object_, ground = (1, 2) if layout == "pets" else (255, 0)
        levels = np.full(image_size(image), ground, np.uint8)
        levels[: len(levels) // 2] = object_
        Image.fromarray(levels).save(path)
    config = Config(
        data={"source": source, "root": tmp_path},
        saliency={"method": "masks", "masks": tmp_path / "masks", "layout": layout},
    )
    masks = MaskFiles(config, train)
    masks.check()
    expected = np.repeat(np.arange(64) < 32, 64).reshape(64, 64)
    for found in masks.maps(range(len(train)), is_shown=False):
        assert all(np.abs(values - expected).mean() < 0.02 for values in found.values())


def test_files_that_timm_lists_are_found_below_the_root(tmp_path, masks):
    files = [tmp_path / "images" / "train" / f"{name}.png" for name in NAMES]
    images = FolderSet(
        root=Path(),
        files=tuple(map(str, files)),
        class_names=("crow", "jay"),
        labels=np.repeat([0, 1], 4),
    )
    config = Config(
        data={"root": tmp_path / "images"}, saliency={"method": "masks", "masks": masks}
    )
    found = MaskFiles(config, images)
    assert found.paths == tuple(masks / "train" / f"{name}.png" for name in NAMES)
