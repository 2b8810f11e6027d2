import json
from pathlib import Path

import jsonschema
import pytest
import timm
import yaml

from online_aug.config_files import load_config
from online_aug.config_schema import fields, json_schema

FOLDER = Path(__file__).parents[1] / "configs"
RECIPES = sorted(FOLDER.glob("*.yaml"))


@pytest.fixture(params=RECIPES, ids=lambda path: path.stem)
def recipe(request):
    return request.param


def test_there_is_a_quickstart():
    assert FOLDER / "quickstart.yaml" in RECIPES


def test_every_recipe_loads(recipe):
    load_config(recipe, [])


def test_every_recipe_names_a_classifier_that_timm_has(recipe):
    assert timm.is_model(load_config(recipe, []).classifier.name)


def test_every_recipe_passes_the_schema_that_editors_use(recipe):
    # As an editor reads it: YAML 1.2, in which 1e-4 is a number.
    values = load_config(recipe, []).model_dump(mode="json")
    jsonschema.validate(values, json.loads((FOLDER / "schema.json").read_text()))


def test_every_recipe_points_editors_to_the_schema(recipe):
    first = recipe.read_text().partition("\n")[0]
    assert first == "# yaml-language-server: $schema=schema.json"


@pytest.mark.parametrize("word", ["Command:", "Hardware:", "Duration:", "Expected:"])
def test_every_recipe_opens_with_what_a_person_asks_first(recipe, word):
    text = recipe.read_text()
    assert f"# {word}" in text.partition("\n\n")[0]


def test_every_recipe_sets_known_keys_only(recipe):
    sections = yaml.safe_load(recipe.read_text())
    assert {f"{name}.{key}" for name, keys in sections.items() for key in keys} <= set(fields())


def test_the_schema_is_the_one_of_the_models():
    # Write it again with `make schema`.
    assert json.loads((FOLDER / "schema.json").read_text()) == json_schema()
