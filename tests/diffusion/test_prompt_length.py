"""Prompts that a text encoder cuts off are refused if two classes become one."""

import pytest

from online_aug.diffusion.adapters import check_prompts
from online_aug.errors import UserError

LONG = "bird with a very long name " * 12


def test_two_classes_that_differ_behind_the_limit_are_named(tiny_model):
    prompts = {"crow": f"{LONG} crow", "jay": f"{LONG} jay", "wren": "wren"}
    with pytest.raises(UserError, match=r"its first \d+ tokens, got the same for 'crow' and 'jay'"):
        check_prompts(tiny_model, prompts)


def test_long_prompts_that_differ_early_are_taken(tiny_model):
    check_prompts(tiny_model, {"crow": f"crow {LONG}", "jay": f"jay {LONG}"})


def test_short_prompts_need_no_tokenizer(tmp_path):
    check_prompts(tmp_path / "none", {"crow": "a photo of a crow", "jay": "a photo of a jay"})
