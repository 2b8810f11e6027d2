"""Prompts that a text encoder cuts off are refused if two classes become one."""

import pytest

from online_aug.diffusion.adapters import check_prompts, check_vectors, class_concepts
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


def test_a_token_of_more_vectors_than_the_text_encoder_reads_is_refused(tiny_model):
    concepts = class_concepts(["crow", "jay"], "bird")  # six words and two marks of 48 tokens
    rule = "finetune.num_vectors must give a token at most 41 vectors, .* 48 tokens, got 42$"
    check_vectors(tiny_model, concepts, 41, "finetune.num_vectors")
    with pytest.raises(UserError, match=rule):
        check_vectors(tiny_model, concepts, 42, "finetune.num_vectors")


def test_one_vector_needs_no_tokenizer(tmp_path):
    check_vectors(tmp_path / "none", class_concepts(["crow"], "bird"), 1, "finetune.num_vectors")
