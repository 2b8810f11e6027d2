import pytest
from classifier_samples import make_config

from online_aug.errors import UserError
from online_aug.training.deepspeed_config import OWNED, deepspeed_config


def settings(world_size=1, **given):
    return deepspeed_config(make_config(classifier={"deepspeed": given}), world_size)


def test_the_batch_is_divided_between_the_ranks():
    found = settings(world_size=2)
    assert (found["train_batch_size"], found["train_micro_batch_size_per_gpu"]) == (8, 4)


def test_a_batch_that_cannot_be_divided_is_refused():
    with pytest.raises(UserError, match=r"optim\.batch_size must be a multiple of the 3 .* got 8"):
        settings(world_size=3)


def test_a_persons_settings_are_merged_over_our_defaults():
    found = settings(wall_clock_breakdown=True, zero_optimization={"stage": 1})
    assert found["wall_clock_breakdown"] is True
    assert found["zero_optimization"] == {"stage": 1}


def test_parts_divide_what_a_rank_gets():
    found = deepspeed_config(make_config(optim={"batch_size": 16, "accumulation": 4}), 2)
    assert found["train_batch_size"] == 16
    assert (found["train_micro_batch_size_per_gpu"], found["gradient_accumulation_steps"]) == (2, 4)


def test_parts_that_do_not_divide_it_are_refused():
    config = make_config(optim={"accumulation": 3})
    with pytest.raises(UserError, match=r"optim\.accumulation must divide the 4 images .* got 3"):
        deepspeed_config(config, 2)


@pytest.mark.parametrize("key", sorted(OWNED))
def test_a_setting_that_contradicts_ours_is_refused_by_name(key):
    with pytest.raises(UserError, match=rf"classifier\.deepspeed\.{key} must not be set"):
        settings(**{key: 1})


@pytest.mark.parametrize("zero", [{"stage": 3}, {"stage": "two"}, 1.5])
def test_stages_that_divide_the_weights_are_refused(zero):
    with pytest.raises(UserError, match=r"zero_optimization must be .*0, 1 or 2"):
        settings(zero_optimization=zero)
