"""Saliency maps of an experiment: who makes them, and what the cache keeps."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Event

import numpy as np
import pytest
import safetensors.torch
import torch
from experiment_samples import make_experiment, make_sgd_mix_experiment
from segmenter_samples import save_onnx

from online_aug.classifier.model import build_classifier
from online_aug.data.transforms import fit_square, normalise
from online_aug.distributed.devices import plan_devices
from online_aug.errors import UserError
from online_aug.experiment.foregrounds import (
    count_fallbacks,
    ensure_saliency,
    make_foregrounds,
    maps_lock,
)
from online_aug.experiment.images import SourceImages
from online_aug.experiment.saliency import CUT_PX, Viewer, check_saliency
from online_aug.experiment.saliency_models import build_teacher
from online_aug.files import alone
from online_aug.loader.pool import open_store
from online_aug.saliency import grab_cut, grad_cam
from online_aug.saliency.maps import decode_map, encode_map
from online_aug.training.describe_run import describe_run

CLASSES, LIMIT_S = 2, 60


@pytest.fixture
def weights(tmp_path):
    """A teacher's file."""
    path = tmp_path / "teacher.safetensors"
    safetensors.torch.save_file(classifier_of(seed=5).state_dict(), path)
    return path


@pytest.fixture
def experiment_of(tmp_path, tiny_model):
    return partial(make_sgd_mix_experiment, tmp_path, tiny_model)


def classifier_of(seed=0, classes=CLASSES):
    from online_aug.config.training import ClassifierConfig

    return build_classifier(ClassifierConfig(name="test_resnet"), classes, seed=seed)


def test_a_map_survives_the_cache():
    values = np.random.default_rng(0).random((3, 7)).astype(np.float32)
    np.testing.assert_allclose(decode_map(encode_map(values)), values, atol=1e-3)


def test_the_maps_of_a_teacher_s_file_are_kept_under_it_for_every_image(experiment_of, weights):
    experiment = experiment_of(teacher=weights)
    assert not experiment.has_maps
    ensure_saliency(experiment)
    assert experiment.has_maps
    table = experiment.saliency.table(experiment.saliency.version, experiment.data.digests)
    assert table.digests == tuple(experiment.data.digests)
    assert len(experiment.plan) == 2 * len(experiment.data.digests)
    assert {r.saliency_version for r in experiment.plan} == {experiment.saliency.version}


def test_a_kept_map_is_the_teacher_s_grad_cam_of_the_image_s_own_class(experiment_of, weights):
    from online_aug.classifier.model import input_statistics

    experiment = experiment_of(teacher=weights)
    ensure_saliency(experiment)
    source, teacher = experiment.data.sources[3], build_teacher(experiment)
    image = fit_square(
        SourceImages(experiment.splits.train, experiment.data.sources).by_index(3), 64
    )
    batch = normalise(image[None], *input_statistics(teacher))
    expected = grad_cam(teacher, batch, torch.tensor([source.label]))[0]
    table = experiment.saliency.table(experiment.saliency.version, experiment.data.digests)
    found = table.maps[table.place(source.digest)]
    np.testing.assert_allclose(found, expected.numpy(), atol=2e-3)


def test_maps_that_are_there_are_not_made_again(experiment_of, weights, monkeypatch):
    ensure_saliency(experiment_of(teacher=weights))
    monkeypatch.setattr("online_aug.experiment.saliency_models.build_classifier", None)
    ensure_saliency(experiment_of(teacher=weights))


def test_one_process_makes_the_maps_and_another_that_needs_them_waits(experiment_of, monkeypatch):
    experiment, asked = experiment_of(method="spectral_residual"), Event()

    def announced(lock):
        asked.set()
        return alone(lock)

    def uniform(images, labels):
        return torch.full((len(images), 64, 64), 0.25)

    monkeypatch.setattr("online_aug.experiment.foregrounds.alone", announced)
    with ThreadPoolExecutor(1) as pool:
        with alone(maps_lock(experiment.config.cache.path)):
            other = pool.submit(ensure_saliency, experiment)
            assert asked.wait(LIMIT_S)
            with open_store(experiment.config, experiment.splits.train) as store:
                make_foregrounds(
                    experiment, store, experiment.saliency.version, Viewer(uniform, 64)
                )
        other.result(LIMIT_S)
    table = experiment.saliency.table(experiment.saliency.version, experiment.data.digests)
    np.testing.assert_allclose(table.maps, 0.25, atol=1e-3)


def test_spectral_residual_needs_no_teacher(experiment_of):
    experiment = experiment_of(method="spectral_residual")
    check_saliency(experiment)
    ensure_saliency(experiment)
    assert experiment.saliency.table("spectral_residual-64", experiment.data.digests).maps.shape[
        1:
    ] == (
        64,
        64,
    )


def test_an_interrupted_making_goes_on_where_it_stopped(experiment_of, monkeypatch):
    experiment, seen = experiment_of(method="spectral_residual", mask="grabcut"), []

    def look(images, labels):
        if len(seen) == 4:
            raise KeyboardInterrupt
        seen.extend(images)
        return torch.rand(len(images), 8, 8)

    version = experiment.saliency.version
    with open_store(experiment.config, experiment.splits.train) as store:
        with pytest.raises(KeyboardInterrupt):
            make_foregrounds(experiment, store, version, Viewer(look, 16, batch_size=2))
        assert store.stats()["saliency_maps"] == 4
        again = Viewer(lambda images, labels: look(images, labels), 16, batch_size=3)
        seen.clear()
        make_foregrounds(experiment, store, version, again)
    assert len(seen) == 4
    assert experiment.has_maps


def test_maps_that_are_constant_are_counted_and_told(experiment_of, caplog):
    experiment = experiment_of(method="spectral_residual")
    flat = Viewer(lambda images, labels: torch.zeros(len(images), 4, 4), 16)
    with open_store(experiment.config, experiment.splits.train) as store:
        make_foregrounds(experiment, store, "flat", flat)
    assert "8 of 8 saliency maps are constant: these images have no foreground" in caplog.text


def test_grabcut_masks_are_stored_beside_the_maps_and_are_those_of_the_image(experiment_of):
    plain = experiment_of(method="spectral_residual")
    experiment = experiment_of(method="spectral_residual", mask="grabcut")
    ensure_saliency(experiment)
    assert experiment.saliency.version == "spectral_residual-64+grabcut-256"
    assert plain.has_maps  # the same maps
    assert {r.saliency_version for r in experiment.plan} == {experiment.saliency.version}
    table = experiment.saliency.table(experiment.saliency.version, experiment.data.digests)
    images = SourceImages(experiment.splits.train, experiment.data.sources)
    for digest in experiment.data.digests:
        image = fit_square(images.by_digest(digest), CUT_PX).permute(1, 2, 0).numpy()
        found = grab_cut(image, table.large_maps([digest], CUT_PX)[0].numpy())
        np.testing.assert_array_equal(table.masks([digest], CUT_PX)[0], found)


def test_where_grabcut_finds_nothing_otsu_s_mask_is_taken_and_told(
    experiment_of, monkeypatch, caplog
):
    experiment = experiment_of(method="spectral_residual", mask="grabcut")
    cuts = iter([None] * 3 + [np.ones((CUT_PX, CUT_PX), np.bool_)] * 5)
    monkeypatch.setattr("online_aug.experiment.foregrounds.grab_cut", lambda *_: next(cuts))
    monkeypatch.setattr("online_aug.experiment.foregrounds._CUT_THREADS", 1)
    ensure_saliency(experiment)
    assert "GrabCut found no foreground in 3 of 8 images: Otsu's mask is taken" in caplog.text
    version, digests = experiment.saliency.version, experiment.data.digests
    with open_store(experiment.config, experiment.splits.train) as store:
        assert count_fallbacks(experiment, store, version) == 3
    masks = experiment.saliency.table(version, digests).masks(digests, CUT_PX)
    plain = experiment.saliency.table("spectral_residual-64", digests).masks(digests, CUT_PX)
    is_otsu = [np.array_equal(one, other) for one, other in zip(masks, plain, strict=True)]
    assert sum(is_otsu) == 3


@pytest.mark.parametrize(
    "change", [{"image_size": 32}, {"name": "test_efficientnet"}, {"method": "spectral_residual"}]
)
def test_another_size_teacher_or_method_is_another_version(experiment_of, weights, change):
    one, other = experiment_of(teacher=weights), experiment_of(**{"teacher": weights} | change)
    assert one.saliency.version != other.saliency.version


def test_a_teacher_of_other_classes_is_refused(experiment_of, tmp_path):
    path = tmp_path / "other.safetensors"
    safetensors.torch.save_file(classifier_of(classes=7).state_dict(), path)
    with pytest.raises(UserError, match=r"saliency\.teacher must hold the weights .* 2 classes"):
        check_saliency(experiment_of(teacher=path))


def test_a_plan_without_its_maps_says_how_to_make_them(experiment_of, weights):
    experiment = experiment_of(teacher=weights)
    open_store(experiment.config, experiment.splits.train).open().close()
    with pytest.raises(UserError, match=r"must hold the saliency maps .*run online-aug train once"):
        _ = experiment.plan


def test_before_the_first_maps_a_dry_run_says_when_they_come(experiment_of, weights):
    devices = plan_devices(experiment_of().config.devices)
    assert "new maps every 5 epochs" in describe_run(experiment_of(), devices)
    assert "8 images, made at the start" in describe_run(experiment_of(teacher=weights), devices)


def test_a_method_that_composes_by_the_foreground_has_its_table_whatever_the_plan(
    tmp_path, tiny_editor
):
    experiment = make_experiment(
        tmp_path,
        tiny_editor,
        finetune={"enabled": False},
        fractals={"count": 2},
        method={"name": "diffusemix", "keeps_object": True},
        saliency={"method": "spectral_residual", "image_size": 64},
    )
    check_saliency(experiment)
    ensure_saliency(experiment)
    assert {request.saliency_version for request in experiment.plan} == {None}
    table = experiment.parts["diffusemix"].context.saliency
    assert table.version == "spectral_residual-64"
    assert experiment.context_for(experiment.plan[0]).saliency is table


def test_keeping_the_object_by_the_classifier_in_training_is_refused(tmp_path, tiny_editor):
    with pytest.raises(ValueError, match="for the parts that diffusemix keeps, got the class"):
        make_experiment(
            tmp_path,
            tiny_editor,
            method={"name": "diffusemix", "keeps_object": True},
            saliency={"method": "grad_cam"},
        )


def test_a_segmenter_needs_no_training(experiment_of, tmp_path):
    file = save_onnx(tmp_path / "net.onnx")
    experiment = experiment_of(method="segmenter", segmenter=str(file))
    check_saliency(experiment)
    ensure_saliency(experiment)
    table = experiment.saliency.table(experiment.saliency.version, experiment.data.digests)
    assert table.maps.shape == (8, 64, 64)
    assert len(experiment.plan) == 16


def test_a_segmenter_that_is_none_is_one_line(experiment_of, tmp_path):
    (tmp_path / "config.json").write_text('{"architectures": ["BertModel"]}')
    for name, reason in (
        (tmp_path, "it is BertModel, for neither semantic segmentation nor mask generation"),
        (tmp_path / "none.onnx", "which is no directory here"),
    ):
        with pytest.raises(UserError) as caught:
            check_saliency(experiment_of(method="segmenter", segmenter=str(name)))
        assert str(caught.value).startswith("saliency.segmenter must be a directory with a model")
        assert reason in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_segmenter_has_to_be_named(experiment_of):
    with pytest.raises(ValueError, match=r"saliency\.segmenter must be .* got null"):
        experiment_of(method="segmenter")
