"""What a run says about its generator: after the first epoch, and how much is still to come."""

from types import SimpleNamespace

import pytest

from online_aug.producer.messages import Status
from online_aug.training.reporter import TrainingReport, forecast


@pytest.mark.parametrize(
    ("status", "left_s", "said"),
    [
        ({"state": "loading"}, 40.0, "loading, 0 images made so far; 40 s of training left"),
        (
            {"state": "generating", "generated": 12, "images_per_s": 2.5},
            100.0,
            "generating, 12 images made so far, "
            "at most 250 more in the 1 min 40 s left of training",
        ),
        ({"state": "finished", "generated": 80}, 9.0, "finished, 80 images made so far"),
        ({"state": "generating", "images_per_s": 2.5}, None, "generating, 0 images made so far"),
    ],
)
def test_what_will_be_made_is_told_as_far_as_it_is_known(status, left_s, said):
    assert forecast(Status(**status), left_s) == f"generator: {said}"


@pytest.mark.parametrize(
    ("state", "nodes", "starvation", "refused", "rejected", "to_come"),
    [
        ("generating", 1, "substitute", {}, 0, 70),
        ("generating", 1, "substitute", {}, 5, 65),  # by the gate
        ("generating", 1, "substitute", {"no foreground": 0.2}, 8, 50),
        ("generating", 2, "substitute", {}, 0, 20),  # the other half is another node's
        ("generating", 2, "wait", {}, 0, 70),
        ("finished", 1, "substitute", {}, 0, 0),
    ],
)
def test_what_is_still_to_come_is_what_this_node_has_not_made(
    state, nodes, starvation, refused, rejected, to_come
):
    report = SimpleNamespace(
        _experiment=SimpleNamespace(
            config=SimpleNamespace(mixing=SimpleNamespace(starvation=starvation)),
            saliency=SimpleNamespace(follows_classifier=False),
        ),
        _world=SimpleNamespace(nodes=nodes),
        _loader=SimpleNamespace(plan=[None] * 100, inserts=30),
        _refused=refused,
    )
    generator = Status(state=state, rejected=rejected)
    assert TrainingReport._to_come(report, generator) == to_come
