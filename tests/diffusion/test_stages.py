import pytest

from online_aug.config.generation import FinetuneConfig
from online_aug.diffusion.adaptation import stages_of, steps_from, total_steps


def plan(**settings):
    """Steps, what is learned, and of which class, stage by stage."""
    return [
        (stage.steps, stage.learns_tokens, stage.learns_lora, stage.label)
        for stage in stages_of(FinetuneConfig(**settings), num_classes=3)
    ]


def test_diff_mix_learns_tokens_and_lora_at_once():
    assert plan(steps=7) == [(7, True, True, None)]


def test_textual_inversion_learns_tokens_only():
    assert plan(steps=7, mode="textual_inversion") == [(7, True, False, None)]


def test_da_fusion_learns_the_token_of_each_class_in_a_run_of_its_own():
    expected = [(7, True, False, label) for label in range(3)]
    assert plan(steps=7, mode="textual_inversion", per_class=True) == expected


def test_staged_learns_tokens_and_then_lora():
    assert plan(steps=7, mode="staged") == [(7, True, False, None), (7, False, True, None)]
    assert plan(steps=7, token_steps=2, mode="staged") == [
        (2, True, False, None),
        (7, False, True, None),
    ]


def test_staged_by_class_ends_with_one_lora_for_all():
    expected = [*((2, True, False, label) for label in range(3)), (7, False, True, None)]
    assert plan(steps=7, token_steps=2, mode="staged", per_class=True) == expected


def test_lora_only_learns_no_tokens():
    assert plan(steps=7, mode="lora") == [(7, False, True, None)]


@pytest.mark.parametrize("first", range(9))
def test_from_any_step_on_the_rest_of_the_stages_follows(first):
    stages = stages_of(FinetuneConfig(steps=5, token_steps=3, mode="staged"), num_classes=3)
    assert total_steps(stages) == 8
    tokens, lora = stages
    every = [(n, tokens, n) for n in range(3)] + [(3 + n, lora, n) for n in range(5)]
    assert list(steps_from(stages, first)) == every[first:]


@pytest.mark.parametrize("mode", ["joint", "lora"])
def test_classes_cannot_have_a_lora_each(mode):
    with pytest.raises(ValueError, match="finetune.per_class must be false unless finetune.mode"):
        FinetuneConfig(mode=mode, per_class=True)
