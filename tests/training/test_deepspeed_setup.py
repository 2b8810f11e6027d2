"""Settings for DeepSpeed: merged with ours, and tried before a run."""

import subprocess

import pytest
from classifier_samples import CLASSES, make_config

from online_aug.distributed.identity import LAUNCH_FOLDER
from online_aug.errors import UserError
from online_aug.training.deepspeed_setup import OWNED, check_deepspeed, deepspeed_config


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


def test_accumulation_divides_the_batch_of_a_rank():
    found = deepspeed_config(make_config(optim={"batch_size": 16, "accumulation": 4}), 2)
    assert found["train_batch_size"] == 16
    assert (found["train_micro_batch_size_per_gpu"], found["gradient_accumulation_steps"]) == (2, 4)


def test_parts_that_do_not_divide_it_are_refused():
    config = make_config(optim={"accumulation": 3})
    with pytest.raises(UserError, match=r"optim\.accumulation must divide the 4 images .* got 3"):
        deepspeed_config(config, 2)


@pytest.mark.parametrize("key", sorted(OWNED))
def test_a_setting_that_contradicts_ours_is_refused_by_name(key):
    with pytest.raises(UserError, match=rf"classifier\.deepspeed must not set {key} \(7: "):
        settings(**{key: 7})


def test_all_conflicts_are_named_at_once():
    with pytest.raises(UserError, match=r"set bf16 \(.*\); optimizer \(.*set optim.name") as caught:
        settings(optimizer={"type": "Adam"}, bf16={"enabled": True})
    assert "\n" not in str(caught.value)


def test_settings_of_ours_may_be_given_if_they_agree():
    found = settings(train_batch_size=8, fp16={"enabled": False}, gradient_clipping="auto")
    assert found == settings()


def test_weights_that_are_divided_cannot_be_averaged():
    zero = {"zero_optimization": {"stage": 3}}
    config = make_config(classifier={"deepspeed": zero}, optim={"ema": 0.9})
    with pytest.raises(UserError, match=r"optim\.ema must be null with ZeRO stage 3"):
        deepspeed_config(config, 1)


@pytest.mark.parametrize("zero", [{"stage": 4}, {"stage": "two"}, 1.5])
def test_stages_that_there_are_not_are_refused(zero):
    with pytest.raises(UserError, match=r"zero_optimization must be .*0, 1, 2 or 3"):
        settings(zero_optimization=zero)


RANK = {
    "RANK": "3",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "4",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
}
STAGE_1 = {"deepspeed": {"zero_optimization": {"stage": 1}}}


class Tried(Exception):
    pass


@pytest.fixture
def _told(monkeypatch):
    """Raised instead of starting a process."""

    def run(*command, **options):
        raise Tried

    monkeypatch.setattr(subprocess, "run", run)


@pytest.mark.usefixtures("_told")
def test_settings_are_tried_but_in_ranks_of_ours(monkeypatch):
    config = make_config(classifier=STAGE_1)
    for variables, is_tried in (
        ({}, True),
        (RANK, True),
        (RANK | {LAUNCH_FOLDER: "/tmp/record"}, False),
    ):
        with monkeypatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            if is_tried:
                with pytest.raises(Tried):
                    check_deepspeed(config, CLASSES, "cpu")
            else:
                check_deepspeed(config, CLASSES, "cpu")


@pytest.mark.usefixtures("_told")
def test_without_settings_nothing_is_tried():
    check_deepspeed(make_config(), CLASSES, "cpu")
