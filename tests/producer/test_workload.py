"""What of the configuration decides what a process makes, and in which order."""

import json

import pytest
from experiment_samples import CLASS_NAMES, make_config, make_experiment

from cache import content_digest
from online_aug.errors import UserError
from online_aug.experiment.contexts import target_weights
from online_aug.producer.request_queue import Stripe
from online_aug.producer.work import UNREADABLE, work_of


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
    assert found.plan == experiment.plan


def test_a_machine_that_helps_nobody_plans_its_own_part(work):
    found, experiment = work(stripe=0, stripes=2, helps=False)
    stripe = Stripe(number=0, count=2)
    assert found.plan == [request for request in experiment.plan if stripe.holds(request)]


@pytest.mark.parametrize(
    ("priority", "weights", "follows"),
    [
        ("uniform", None, False),
        ("long_tail", target_weights([4, 4], 1.0), False),
        ("hard", [1.0, 1.0], True),
    ],
)
def test_the_priority_says_how_classes_are_weighed(work, priority, weights, follows):
    found, _ = work(priority=priority)
    assert (found.weights, found.follows_losses) == (weights, follows)


def test_images_are_weighed_as_a_file_says(work, tmp_path):
    _, experiment = work()
    path = tmp_path / "weights.json"
    path.write_text(json.dumps({experiment.digests[0]: 3}))
    found, _ = work(image_weights=str(path))
    assert (found.weights, found.follows_losses) == ({experiment.digests[0]: 3.0}, False)


@pytest.mark.parametrize("on_bad_image", ["skip", "error"])
def test_a_source_that_is_lost_meanwhile_is_left_out_or_named(tmp_path, tiny_model, on_bad_image):
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


def test_a_source_that_is_lost_after_its_request_was_accepted_is_prepared_all_the_same(
    tmp_path, tiny_model
):
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
def test_processes_of_one_run_divide_how_far_they_may_be_ahead(work, count, ahead):
    assert work(0, count)[0].max_ahead == ahead
