"""Samples of a run: random and hardest ones that it served, and rejected ones with the reason."""

import base64
from io import BytesIO

import numpy as np
import pytest
from experiment_samples import CLASS_NAMES, make_experiment
from PIL import Image

from cache import Entry, Rejection, Store
from cache.contact_sheet import small_picture
from online_aug.errors import UserError
from online_aug.reporting.class_results import draw_confusion
from online_aug.reporting.samples import (
    SAMPLES_FILE,
    SHOWN,
    Samples,
    choose_samples,
    read_samples,
    write_samples,
)


@pytest.fixture
def experiment(tmp_path, tiny_model):
    return make_experiment(tmp_path, tiny_model, finetune={"enabled": False})


@pytest.fixture
def store(experiment):
    with Store(experiment.config.cache.path).open() as opened:
        yield opened


def put(store, requests):
    """Store an image of its own grey for each request."""
    greys = np.linspace(20, 230, len(requests)).astype(np.uint8)
    images = [np.full((64, 64, 3), grey, np.uint8) for grey in greys]
    store.put_many([Entry(r.to_fields(), i) for r, i in zip(requests, images, strict=True)])


def sure_of_the_first(pictures):
    """A classifier that says the first class, the surer the darker the picture."""
    shares = np.array([0.5 + 0.4 * (1 - picture.mean() / 255) for picture in pictures])
    rest = (1 - shares) / (len(CLASS_NAMES) - 1)
    return np.log(np.column_stack([shares, *[rest] * (len(CLASS_NAMES) - 1)]))


def chosen(experiment, store, rejected=None):
    return choose_samples(experiment, store, experiment.plan, rejected or {}, sure_of_the_first)


def test_the_hardest_come_first_and_are_harder_than_all_others(experiment, store):
    put(store, experiment.plan)
    found = chosen(experiment, store)
    losses = [sample.loss for sample in found.of("hardest")]
    assert len(losses) == SHOWN
    assert losses == sorted(losses, reverse=True)
    assert found.looked_at == len(experiment.plan)
    assert min(losses) >= np.median([sample.loss for sample in found.of("random")])


def test_the_loss_is_the_divergence_from_the_soft_label(experiment, store):
    put(store, experiment.plan)
    for sample in chosen(experiment, store).of("random"):
        data = base64.b64decode([*sample.pictures.values()][-1])
        picture = np.asarray(Image.open(BytesIO(data)).convert("RGB"))
        (answer,) = sure_of_the_first([picture])
        label = sample.soft_label
        expected = sum(q * (np.log(q) - answer[CLASS_NAMES.index(n)]) for n, q in label.items())
        assert sample.loss == pytest.approx(expected, abs=0.02)  # the picture is lossy
        assert sample.taken_for == CLASS_NAMES[0]


def test_rejected_images_come_with_reason_and_picture_of_every_reason(experiment, store):
    picture = small_picture(np.zeros((8, 8, 3), np.uint8), 8)
    reasons = {
        request: Rejection("off-class", picture, {"clip": 0.2}) for request in experiment.plan[:-1]
    }
    reasons[experiment.plan[-1]] = Rejection("source mask too small")
    found = chosen(experiment, store, reasons).of("rejected")
    assert {sample.reason for sample in found} == {"off-class", "source mask too small"}
    assert [*found[0].pictures] == ["source", "rejected"]
    assert found[0].scores == {"clip": 0.2}
    assert len(found) == min(SHOWN, len(experiment.plan) - 1) + 1


def test_a_run_that_served_nothing_synthetic_has_no_samples(experiment, store):
    assert chosen(experiment, store) == Samples(looked_at=0, samples=[])


def test_samples_are_read_back_as_they_were_written(experiment, store, tmp_path):
    put(store, experiment.plan)
    found = chosen(experiment, store)
    write_samples(tmp_path, found)
    assert read_samples(tmp_path) == found
    assert read_samples(tmp_path / "elsewhere").samples == []


def test_a_foreign_file_is_one_line(tmp_path):
    (tmp_path / SAMPLES_FILE).write_text("[1]")
    with pytest.raises(UserError, match=r"samples\.json must be a JSON object, got list$"):
        read_samples(tmp_path)


@pytest.mark.parametrize("classes", [3, 60])
def test_the_picture_of_a_confusion_matrix_is_green_on_the_diagonal_only(classes):
    names = [f"class {n}" for n in range(classes)]
    picture = draw_confusion(names, {"class 0": {"class 0": 3, "class 2": 1}}).astype(int)
    cell = picture.shape[0] // classes
    green = (picture[..., 1] > picture[..., 0] + 30).sum()
    red = (picture[..., 0] > picture[..., 1] + 15).sum()
    assert 0 < green <= cell**2
    assert 0 < red <= cell**2
