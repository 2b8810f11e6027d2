"""The recipes of DiffDA-Eval: each loads, and those of a setting have one vanilla twin."""

import re
from pathlib import Path

import pytest

from online_aug.cli.compare import VANILLA, rows_of
from online_aug.cli.main import Command
from online_aug.config.loading import RECIPES, find_recipe, load_config
from online_aug.errors import UserError

FOLDER = RECIPES / "diffda"
METHODS = ("diff_mix", "diff_aug", "da_fusion", "real_guidance", "diffusemix")
FEW = [f"{data}_shot{count}" for data in ("cub", "aircraft") for count in (1, 5, 10)]
SETTINGS = [*FEW, "caltech101", "cifar100", "imagenet100"]


def configs(setting):
    return {name: load_config(find_recipe(f"diffda/{setting}_{name}"), []) for name in METHODS}


def test_there_is_a_recipe_for_each_setting_and_method():
    expected = {f"{setting}_{method}" for setting in SETTINGS for method in METHODS}
    assert {path.stem for path in FOLDER.glob("*.yaml")} == expected


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_recipe_is_of_its_method_and_setting_with_five_images_of_each(setting):
    for name, config in configs(setting).items():
        assert [each.name for each in config.methods] == [name]
        assert config.generation.variants_per_image == 5
        shots = setting.partition("_shot")[2]
        assert config.data.examples_per_class == (int(shots) if shots else None)
        assert config.mixing.policy == ("global" if shots else "concat")


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_recipes_of_a_setting_stand_in_one_table(setting):
    first, *others = (Command(recipe=f"diffda/{setting}_{name}", overrides=()) for name in METHODS)
    assert [*rows_of(first, others)] == [VANILLA, *(f"{setting}_{name}" for name in METHODS)]


def test_with_all_images_an_epoch_has_each_of_the_five_once():
    for setting in ("caltech101", "cifar100", "imagenet100"):
        for config in configs(setting).values():
            share = config.mixing.synthetic_probability
            assert share / (1 - share) == pytest.approx(5)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_head_says_what_a_person_asks_first(path):
    head = path.read_text().partition("\n\n")[0]
    assert head.startswith("# yaml-language-server: $schema=../schema.json")
    for word in ("Paper:", "Command:", "Hardware:", "Duration:", "Disk:", "Expected:"):
        assert f"# {word}" in head
    assert f"online-aug train diffda/{path.stem}" in head


PAGE = Path(__file__).parents[2] / "docs" / "PAPERS.md"


def rows_of_page():
    """Return images, generated images, disk and policy of each setting in docs/PAPERS.md."""
    found = {}
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        names = re.findall(r"`(\w+)`", cells[0])
        if len(cells) == 5 and set(names) & set(SETTINGS):
            parts = [re.split(r", (?=[\d.])", cell) for cell in cells[1:4]]
            listed = [part if len(part) == len(names) else part * len(names) for part in parts]
            found |= {name: (*row, cells[4]) for name, *row in zip(names, *listed, strict=True)}
    return found


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_page_of_the_papers_agrees_with_the_heads_and_the_keys(setting):
    images, made, disk, policy = rows_of_page()[setting]
    wanted = {"replaced": "global", "kept beside": "concat"}[policy]
    each = images.replace(",", "").isdigit()
    for name, config in configs(setting).items():
        head = find_recipe(f"diffda/{setting}_{name}").read_text().partition("\n\n")[0]
        head = " ".join(head.replace("#", " ").split())
        assert config.mixing.policy == wanted
        assert f"{made if each else 'five times as many'} generated images" in head
        if name != "diffusemix":
            assert f"at most {disk.partition(' ')[0]} GiB" in head


def test_recipes_of_two_trainings_are_not_put_in_one_table():
    first, other = (
        Command(recipe=f"diffda/{name}", overrides=())
        for name in ("cub_shot5_diff_mix", "cub_shot1_diff_mix")
    )
    with pytest.raises(UserError, match="must have one vanilla twin .* data.examples_per_class"):
        rows_of(first, [other])
