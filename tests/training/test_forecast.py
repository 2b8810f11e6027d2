"""What a run says about its generator after the first epoch."""

import pytest

from online_aug.producer.messages import Status
from online_aug.training.reporter import forecast


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
