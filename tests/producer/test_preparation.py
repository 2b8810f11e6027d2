"""What comes before the plan is known: made once, in its order, and kept."""

import pytest
from experiment_samples import make_experiment

from online_aug.distributed.devices import plan_devices
from online_aug.loader.pool import open_store
from online_aug.producer.preparation import prepare_generation
from online_aug.training.describe_run import describe_run


@pytest.fixture
def make(tmp_path, tiny_model):
    def experiment():
        return make_experiment(
            tmp_path,
            tiny_model,
            finetune={"enabled": False},
            method={
                "name": "diff_aug",
                "strength": "adaptive",
                "tried_strengths": [0.25, 0.5],
                "trials_per_class": 4,
            },
            gate={"classifier": "self", "path": tmp_path / "judges", "steps": 2, "top_k": 2},
        )

    return experiment


@pytest.mark.slow
def test_judge_and_strengths_are_made_before_the_plan_is_known(make):
    experiment = make()
    assert not experiment.plan_is_known
    prepare_generation(experiment)
    assert make().plan_is_known
    with open_store(experiment.config, experiment.splits.train) as store:
        trials = [request.key for request in experiment.strengths.trials]
        assert store.contains(trials) == [True] * 8  # both classes are among the two likeliest
        assert len(store) == 8
    assert {r.strength for r in make().plan if r.key not in trials} == {0.5}


def test_a_dry_run_says_what_is_to_be_made(make):
    experiment = make()
    text = describe_run(experiment, plan_devices(experiment.config.devices))
    assert "judge      trained at the start in 2 steps" in text
    assert "strength   diff_aug learns it from 4 images of each class" in text
