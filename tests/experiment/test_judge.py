"""The judge that an experiment trains on its own images: once, under a digest, for later runs."""

import pytest
from experiment_samples import make_experiment

from online_aug.classifier import judge as training
from online_aug.classifier.class_names import class_names_in
from online_aug.errors import UserError
from online_aug.experiment import judge as judges
from online_aug.experiment.judge import ensure_judge


@pytest.fixture
def make(tmp_path, tiny_model):
    def experiment(**gate):
        own = {"classifier": "self", "path": tmp_path / "judges", "steps": 2}
        return make_experiment(tmp_path, tiny_model, finetune={"enabled": False}, gate=own | gate)

    return experiment


@pytest.fixture
def trained(monkeypatch):
    """The steps of each judge that was trained."""
    seen = []

    def train(recipe, *others):
        seen.append(recipe.steps)
        return training.train_judge(recipe, *others)

    monkeypatch.setattr(judges, "train_judge", train)
    return seen


@pytest.mark.slow
def test_a_judge_is_trained_once_and_reused(make, trained):
    for _ in range(3):
        ensure_judge(make())
    assert trained == [2]
    assert make().plan_is_known
    assert class_names_in(make().judge.file) == ["crow", "jay"]


@pytest.mark.slow
def test_another_judge_asks_for_other_images(make):
    plans = []
    for steps in (1, 2):
        ensure_judge(make(steps=steps))
        plans.append({request.key for request in make(steps=steps).plan})
    assert not plans[0] & plans[1]


@pytest.mark.slow
def test_the_same_recipe_trains_the_same_judge(make):
    experiment = make()
    ensure_judge(experiment)
    first = experiment.judge.file.read_bytes()
    experiment.judge.file.unlink()
    ensure_judge(experiment)
    assert experiment.judge.file.read_bytes() == first


@pytest.mark.parametrize("other", [{"steps": 3}, {"image_size": 32}, {"name": "test_resnet2"}])
def test_what_decides_the_training_decides_the_file(make, other):
    assert make(**other).judge.file.name != make().judge.file.name


@pytest.mark.parametrize("other", [{"shows": "target"}, {"min_probability": 0.3}])
def test_another_rule_needs_no_other_judge(make, other):
    assert make(**other).judge.file == make().judge.file


def test_before_it_is_trained_the_plan_is_refused(make):
    assert not make().plan_is_known
    with pytest.raises(UserError, match=r"gate\.path must hold the judge.*online-aug fill first"):
        make().check(generates=False)


def test_a_judge_of_its_own_is_right_if_it_finds_the_class_most_probable(make):
    assert make().config.gate.rank_limit == 1
    assert make(min_probability=0.2).config.gate.rank_limit is None


def test_a_folder_that_cannot_be_written_is_named(make, tmp_path):
    (tmp_path / "judges").write_text("a file")
    with pytest.raises(UserError, match=r"gate\.path must be a writable folder"):
        ensure_judge(make())


def test_an_unknown_network_is_refused_before_anything_is_trained(make):
    with pytest.raises(UserError, match=r"gate\.name must be a timm model, got 'resnet_x'"):
        make(name="resnet_x").check(generates=True)
