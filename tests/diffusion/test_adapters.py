"""Names of the classes in prompts, and when a result of fine-tuning is whole."""

from online_aug.diffusion.adapters import (
    CONCEPTS_FILE,
    class_concepts,
    is_finetuned,
    named_concepts,
)


def test_no_token_is_the_beginning_of_another():
    # diffusers takes <t>, <t>_1, <t>_2 for one token of several vectors.
    tokens = [c.token for c in class_concepts([str(n) for n in range(120)], "bird")]
    assert len(set(tokens)) == 120
    assert not any(a != b and b.startswith(a) for a in tokens for b in tokens)


def test_a_prompt_names_token_and_metaclass_and_never_the_class():
    first, second = class_concepts(["crow", "jay"], "bird")
    assert first.prompt == "a photo of a <class_0> bird"
    assert second.prompt == "a photo of a <class_1> bird"
    assert [first.name, second.name] == ["crow", "jay"]


def test_without_a_metaclass_a_prompt_ends_with_its_token():
    assert class_concepts(["crow", "jay"], "")[1].prompt == "a photo of a <class_1>"


def test_prompts_with_names_speak_them_without_underscores():
    first, second = named_concepts(["blue_jay", "crow"], "bird")
    assert [first.prompt, second.prompt] == [
        "a photo of a blue jay bird",
        "a photo of a crow bird",
    ]
    assert [first.name, first.token] == ["blue_jay", None]


def test_a_result_is_whole_when_its_last_file_is_there(tmp_path):
    assert not is_finetuned(tmp_path / "missing")
    assert not is_finetuned(tmp_path)
    (tmp_path / CONCEPTS_FILE).write_text("[]")
    assert is_finetuned(tmp_path)


def test_a_template_says_where_the_class_stands():
    template = "a drawing of {class}, in ink"
    (token,) = class_concepts(["crow"], "bird", template)
    (name,) = named_concepts(["blue_jay"], "", template)
    assert token.prompt == "a drawing of <class_0> bird, in ink"
    assert name.prompt == "a drawing of blue jay, in ink"


def test_a_template_without_a_class_is_the_same_for_all():
    prompts = {one.prompt for one in named_concepts(["crow", "jay"], "bird", "a photo")}
    assert prompts == {"a photo"}
