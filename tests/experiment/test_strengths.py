"""What became of trials is kept, and the plan follows from it alone."""

import numpy as np
import pytest
from experiment_samples import make_config, make_experiment, write_judge
from pydantic import ValidationError

from cache import Entry, Rejection, Store
from online_aug.errors import UserError

ADAPTIVE = {"tried_strengths": [0.5, 0.75, 1.0], "trials_per_class": 6}


@pytest.fixture
def make(tmp_path, tiny_model):
    """Make the same experiment again and again, or one with other keys of `adaptive`."""
    judge = write_judge(tmp_path / "judge.safetensors")

    def experiment(name="diff_aug", **adaptive):
        return make_experiment(
            tmp_path,
            tiny_model,
            finetune={"enabled": False},
            method={"name": name, "strength": "adaptive"} | ADAPTIVE | adaptive,
            gate={"classifier": judge, "top_k": 1},
        )

    return experiment


def decide(experiment, store, limits):
    """Record trials whose images are accepted up to a strength for each class."""
    for request in experiment.strengths.trials:
        if request.strength <= limits[request.target_label]:
            store.put_many([Entry(request.to_fields(), np.zeros((8, 8, 3), np.uint8), {}, {})])
        else:
            store.reject(request.key, request.to_fields(), Rejection("off-class"))


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "cache") as opened:
        yield opened


def test_the_same_evidence_gives_the_same_plan(make, store):
    first = make()
    decide(first, store, (0.5, 1.0))
    first.strengths.keep(store)
    plan = list(make().plan)
    assert [request.key for request in plan] == [request.key for request in first.plan]
    trials = {request.key for request in first.strengths.trials}
    later = {(r.source_label, r.strength) for r in plan if r.key not in trials}
    assert later == {(0, 0.5), (1, 1.0)}


def test_images_that_are_evicted_do_not_change_the_plan(make, store):
    first = make()
    decide(first, store, (0.5, 1.0))
    first.strengths.keep(store)
    plan = list(make().plan)
    store.evict(store.policy, count=100)
    assert list(make().plan) == plan


def test_a_milder_limit_needs_no_new_trials(make, store):
    first = make()
    decide(first, store, (0.5, 0.75))
    first.strengths.keep(store)
    trials = {request.key for request in first.strengths.trials}
    assert {r.strength for r in make(min_accepted=0.0).plan if r.key not in trials} == {1.0}


@pytest.mark.parametrize("is_begun", [False, True])
def test_a_plan_whose_trials_are_not_decided_is_refused(make, store, is_begun):
    experiment = make()
    if is_begun:
        store.reject(
            experiment.strengths.trials[0].key,
            experiment.strengths.trials[0].to_fields(),
            Rejection("black"),
        )
    assert not experiment.plan_is_known
    with pytest.raises(UserError, match=r"must hold the trials of method\.strength adaptive"):
        experiment.check(generates=False)


def test_trials_that_are_gone_are_not_taken_for_rejected(make, store):
    experiment = make()
    store.open()
    with pytest.raises(UserError, match=r"room for the trials.*12 of 12 are gone"):
        experiment.strengths.keep(store)


def test_other_strengths_are_other_trials(make, store):
    experiment = make()
    decide(experiment, store, (1.0, 1.0))
    experiment.strengths.keep(store)
    assert not make(tried_strengths=[0.5, 1.0]).strengths.are_known


def test_without_a_gate_it_is_refused(tmp_path, tiny_model):
    message = r"gate\.classifier must be self or a file of weights with method\.strength adaptive"
    with pytest.raises(ValidationError, match=message):
        make_config(tmp_path, tiny_model, method={"name": "diff_mix", "strength": "adaptive"})


def test_a_strength_that_runs_no_step_is_refused_by_its_own_key(tmp_path, tiny_model):
    adaptive = {"name": "diff_mix", "strength": "adaptive", "tried_strengths": [0.1]}
    with pytest.raises(ValidationError, match=r"method\.tried_strengths \* generation"):
        make_config(tmp_path, tiny_model, method=adaptive, gate={"classifier": "self"})
