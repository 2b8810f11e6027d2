"""The work of one process by the configuration, and an engine that shares its device."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from experiment_samples import CLASS_NAMES, make_config, make_experiment

from cache import content_digest
from online_aug.config import Config
from online_aug.errors import UserError
from online_aug.experiment.foregrounds import ensure_saliency
from online_aug.experiment.images import SourceImages
from online_aug.labels import rare_class_weights
from online_aug.methods import Method
from online_aug.methods.diff_mix import DaFusion
from online_aug.producer.request_order import RequestOrder, Stripe
from online_aug.producer.work import UNREADABLE, DutyCycle, share_device, work_of


@pytest.fixture
def work(tmp_path, tiny_model):
    def make(number=0, count=1, **schedule):
        experiment = make_experiment(
            tmp_path, tiny_model, finetune={"enabled": False}, schedule=schedule
        )
        return work_of(experiment, number, count), experiment

    return make


def test_a_process_begins_with_its_part_of_the_part_of_its_machine(work):
    found, experiment = work(1, 2, stripe=2, stripes=3)
    assert found.stripe == Stripe(number=2, count=3).split(1, 2)
    assert list(found.plan) == list(experiment.plan)


def test_a_machine_that_does_not_help_makes_only_its_own_part(work):
    found, experiment = work(stripe=0, stripes=2, helps=False)
    stripe = Stripe(number=0, count=2)
    taken = RequestOrder(found.plan, found.stripe).take(len(found.plan))
    assert taken == [request for request in experiment.plan if stripe.holds(request)]


@pytest.mark.parametrize(
    ("priority", "weights", "follows"),
    [
        ("uniform", None, False),
        ("long_tail", rare_class_weights((4, 4), 1.0), False),
        ("hard", [1.0, 1.0], True),
    ],
)
def test_the_priority_decides_the_weights_of_the_classes(work, priority, weights, follows):
    found, _ = work(priority=priority)
    assert (found.weights, found.follows_losses) == (weights, follows)


def test_a_file_decides_the_weights_of_the_images(work, tmp_path):
    _, experiment = work()
    path = tmp_path / "weights.json"
    path.write_text(json.dumps({experiment.data.digests[0]: 3}))
    found, _ = work(image_weights=str(path))
    assert (found.weights, found.follows_losses) == ({experiment.data.digests[0]: 3.0}, False)


@pytest.mark.parametrize("on_bad_image", ["skip", "error"])
def test_a_lost_source_is_skipped_or_named(tmp_path, tiny_model, on_bad_image):
    base = make_config(tmp_path, tiny_model).data.model_dump(mode="json")
    data = base | {"on_bad_image": on_bad_image}
    experiment = make_experiment(tmp_path, tiny_model, finetune={"enabled": False}, data=data)
    found = work_of(experiment)
    lost = tmp_path / "images" / "train" / CLASS_NAMES[0] / "2.png"
    digest = content_digest(lost.read_bytes())
    lost.unlink()
    refused = {r.source_digest for r in found.plan if found.refusal(r) == UNREADABLE}
    if on_bad_image == "skip":
        assert refused == {digest}
    else:
        assert refused == set()
        with pytest.raises(UserError, match=r"crow/2\.png cannot be read"):
            found.prepare([r for r in found.plan if r.source_digest == digest])


def test_a_source_lost_after_its_request_was_accepted_is_prepared_from_memory(tmp_path, tiny_model):
    base = make_config(tmp_path, tiny_model).data.model_dump(mode="json")
    data = base | {"on_bad_image": "skip"}
    experiment = make_experiment(tmp_path, tiny_model, finetune={"enabled": False}, data=data)
    before = work_of(experiment).prepare(experiment.plan[:4])
    found = work_of(experiment)
    accepted = [request for request in found.plan[:4] if found.refusal(request) is None]
    for path in (tmp_path / "images" / "train").rglob("*.png"):
        path.unlink()
    assert len(accepted) == 4
    assert (found.prepare(accepted) == before).all()


@pytest.mark.parametrize(("count", "ahead"), [(1, 256), (3, 86)])
def test_processes_of_a_run_divide_how_far_they_may_run_ahead(work, count, ahead):
    assert work(0, count)[0].max_ahead == ahead


def test_a_process_never_pauses_for_a_trainer_that_waits_for_each_image(tmp_path, tiny_model):
    experiment = make_experiment(
        tmp_path, tiny_model, finetune={"enabled": False}, mixing={"starvation": "wait"}
    )
    assert work_of(experiment).max_ahead is None


def test_images_of_several_methods_are_prepared_each_by_its_own(tmp_path, tiny_model, monkeypatch):
    experiment = make_experiment(tmp_path, tiny_model, finetune={"enabled": False})
    listed = [{"name": "diff_mix"}, {"name": "diff_aug", "weight": 2.0}]
    config = experiment.config.model_dump(mode="json") | {"method": listed}
    experiment = replace(experiment, config=Config.model_validate(config))
    prepared = []

    def prepare(self, images, requests, context, image_of):
        prepared.extend((self.name, request) for request in requests)
        return images

    monkeypatch.setattr(Method, "prepare", prepare)
    work_of(experiment).prepare(experiment.plan)
    assert {request for _, request in prepared} == set(experiment.plan)
    assert {name for name, _ in prepared} == {"diff_mix", "diff_aug"}
    assert all(name == request.method for name, request in prepared)


def test_sources_and_what_they_are_mixed_with_are_resized_as_the_request_says(
    tmp_path, tiny_model, monkeypatch
):
    experiment = make_experiment(tmp_path, tiny_model, finetune={"enabled": False})
    one, other = experiment.plan[0], experiment.plan[1]
    sources, seen = SourceImages(experiment.splits.train, experiment.data.sources), []

    def prepare(self, images, requests, context, image_of):
        seen.append(image_of(other.source_digest))
        return images

    monkeypatch.setattr(Method, "prepare", prepare)
    for kind in ("bilinear", "bicubic"):
        request = replace(one, source_filter=kind)
        started = work_of(experiment).prepare([request])[0, :3]
        side = request.resolution
        assert torch.equal(started, sources.square(one.source_digest, side, kind))
        expected = sources.square(other.source_digest, side, kind).permute(1, 2, 0)
        np.testing.assert_array_equal(seen[-1], expected)
    assert not np.array_equal(*seen)


class Worker:
    """Stands for `ImageGenerator`: a step takes a second, and half a second more on the device."""

    room = 5

    def __init__(self):
        self.now_s = self.rested_s = 0.0
        self.asked = []

    def step(self):
        self.now_s += 1.0
        return ["an image"]

    def finish(self):
        self.now_s += 0.5

    def sleep(self, seconds):
        self.now_s += seconds
        self.rested_s += seconds

    def submit(self, *arguments):
        self.asked.append(arguments)

    def drop(self):
        self.asked.append("drop")


def shared(share):
    worker = Worker()
    cycle = DutyCycle(
        worker, share, finish=worker.finish, clock=lambda: worker.now_s, sleep=worker.sleep
    )
    return worker, cycle


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.9])
def test_an_engine_rests_for_its_share_of_the_time(share):
    worker, cycle = shared(share)
    for _ in range(10):
        assert cycle.step() == ["an image"]
    assert worker.rested_s / worker.now_s == pytest.approx(share)


def test_work_that_the_device_has_still_to_do_counts():
    worker, cycle = shared(0.5)
    cycle.step()
    assert worker.rested_s == 1.5


def test_everything_but_steps_goes_straight_to_the_engine():
    worker, cycle = shared(0.5)
    cycle.submit(["a request"], print)
    cycle.drop()
    assert cycle.room == 5
    assert worker.asked == [(["a request"], print), "drop"]
    assert worker.now_s == 0


def test_an_engine_with_a_device_of_its_own_never_rests():
    worker = Worker()
    assert share_device(worker, "cpu", 0.0) is worker
    assert isinstance(share_device(worker, "cuda:0", 0.5), DutyCycle)


@pytest.mark.parametrize("edits", ["object", "background"])
def test_an_edit_within_or_beside_the_object_is_made_by_its_foreground(tmp_path, tiny_model, edits):
    experiment = make_experiment(
        tmp_path,
        tiny_model,
        finetune={"enabled": False},
        method={"name": "da_fusion", "edits": edits},
        saliency={"method": "spectral_residual", "mask": "otsu"},
    )
    ensure_saliency(experiment)
    found = work_of(experiment)
    request = next(one for one in found.plan if found.refusal(one) is None)
    assert request.saliency_version == experiment.saliency.version
    start = found.prepare([request])[0].permute(1, 2, 0).numpy()
    stays = start[..., 3] > 0
    assert 0 < stays.mean() < 1
    made = 255 - start[..., :3]
    expected = np.where(stays[..., None], start[..., :3], made)
    np.testing.assert_array_equal(found.finish(request, made), expected)
    other = {"object": "background", "background": "object"}[edits]
    method = DaFusion(DaFusion.Settings(name="da_fusion", edits=other))
    opposite = replace(request, keeps={"object": "background", "background": "foreground"}[other])
    (rest,) = method.kept([opposite], experiment.context_for(request), 64)
    np.testing.assert_array_equal(rest, ~stays)


@pytest.mark.parametrize("keeps", ["nothing", "foreground", "background"])
def test_a_kept_foreground_ends_with_the_source_s_own_pixels(
    tmp_path, tiny_model, monkeypatch, keeps
):
    experiment = make_experiment(tmp_path, tiny_model, finetune={"enabled": False})
    found = work_of(experiment)
    request = replace(found.plan[0], keeps=keeps)
    stays = np.zeros((1, 64, 64), np.bool_)
    stays[0, :20, 5:] = True
    (method,) = experiment.methods.values()
    monkeypatch.setattr(type(method), "kept", lambda *_: stays)
    source = found.prepare([request])[0, :3].permute(1, 2, 0).numpy()
    made = 255 - source
    expected = np.where(stays[0][..., None], source, made) if keeps != "nothing" else made
    np.testing.assert_array_equal(found.finish(request, made), expected)
