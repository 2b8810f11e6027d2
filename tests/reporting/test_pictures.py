from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from experiment_samples import CLASS_NAMES, make_experiment
from PIL import Image

from cache import Entry, Store
from online_aug.config import Config
from online_aug.reporting.gallery import draw_run_gallery, gallery_rows


@pytest.fixture
def experiment(tmp_path, tiny_model):
    return make_experiment(tmp_path, tiny_model, finetune={"enabled": False})


@pytest.fixture
def store(experiment):
    with Store(experiment.config.cache.path).open() as opened:
        yield opened


def put(store, requests):
    image = np.full((64, 64, 3), 200, np.uint8)
    store.put_many([Entry(request.to_fields(), image) for request in requests])


def test_a_row_shows_source_generated_image_and_what_was_asked_for(experiment, store):
    request = experiment.plan[3]
    put(store, [request])
    (row,) = gallery_rows(experiment, experiment.plan, store, 5)
    index = [source.digest for source in experiment.data.sources].index(request.source_digest)
    np.testing.assert_array_equal(row.pictures["source"], experiment.splits.train.load(index))
    assert (row.pictures["generated"] == 200).all()
    assert row.source_name == CLASS_NAMES[request.source_label]
    assert row.target_name == CLASS_NAMES[request.target_label]
    assert row.strength == request.strength
    assert sum(row.soft_label.values()) == pytest.approx(1, abs=1e-6)
    assert set(row.soft_label) == {row.source_name, row.target_name}


def test_there_are_at_most_as_many_rows_as_asked_for_by_strength(experiment, store):
    put(store, experiment.plan)
    rows = gallery_rows(experiment, experiment.plan, store, 6)
    assert len(rows) == 6
    assert [row.strength for row in rows] == sorted(row.strength for row in rows)


def test_an_image_whose_source_is_lost_is_left_out(experiment, store, tmp_path):
    put(store, experiment.plan)
    everything = len(gallery_rows(experiment, experiment.plan, store, 99))
    (tmp_path / "images" / "train" / CLASS_NAMES[0] / "2.png").unlink()
    assert 0 < len(gallery_rows(experiment, experiment.plan, store, 99)) < everything


def test_images_of_other_recipes_are_not_shown(experiment, store, tmp_path, tiny_model):
    other = make_experiment(
        tmp_path, tiny_model, finetune={"enabled": False}, method={"gamma": 0.3}
    )
    put(store, other.plan[:2])  # the same requests: labels do not decide pixels
    stranger = make_experiment(
        tmp_path, tiny_model, finetune={"enabled": False}, method={"name": "diff_aug"}
    )
    put(store, stranger.plan[:2])
    assert len(gallery_rows(experiment, experiment.plan, store, 9)) == 2


def test_the_gallery_is_a_picture(experiment, store, tmp_path):
    put(store, experiment.plan[:4])
    draw_run_gallery(experiment, experiment.plan, store, tmp_path / "gallery.png")
    with Image.open(tmp_path / "gallery.png") as image:
        assert min(image.size) > 64


def test_without_any_image_there_is_no_gallery(experiment, store, tmp_path):
    draw_run_gallery(experiment, experiment.plan, store, tmp_path / "gallery.png")
    assert not (tmp_path / "gallery.png").exists()


def test_of_several_methods_each_has_as_many_rows_and_is_named(experiment, store):
    listed = [{"name": "diff_mix", "weight": 5.0}, {"name": "diff_aug"}]
    config = Config.model_validate(experiment.config.model_dump(mode="json") | {"method": listed})
    shared = replace(experiment, config=config)
    put(store, shared.plan)
    rows = gallery_rows(shared, shared.plan, store, 4)
    assert Counter(row.method for row in rows) == {"diff_mix": 2, "diff_aug": 2}


def test_where_a_run_has_one_method_no_row_names_it(experiment, store):
    put(store, experiment.plan[:1])
    assert [row.method for row in gallery_rows(experiment, experiment.plan, store, 4)] == [None]
