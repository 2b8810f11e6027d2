import json
import re
import shlex
from pathlib import Path

import jsonschema
import pytest
import timm
import yaml
from published_samples import WRITERS, accept_small_flowers, picture, shots

from online_aug.cli.train import main
from online_aug.config.loading import find_recipe, load_config
from online_aug.config.schema import fields, json_schema
from online_aug.data.published.sets import PUBLISHED

FOLDER = Path(__file__).parents[2] / "configs"
RECIPES = sorted(FOLDER.glob("*.yaml"))
PAPERS = [path for path in RECIPES if load_config(path, []).data.source in PUBLISHED]
OTHERS = [path for path in RECIPES if path not in PAPERS]
OF_DIFFDA = sorted((FOLDER / "diffda").glob("*.yaml"))
CUB_IMAGES = {"train": 60}
"""Images of a class: leaves more than 50 to look for a background in, also in a long tail."""


def head(path):
    return path.read_text().partition("\n\n")[0]


def variants(path):
    """Return the keys of each variant in a head; a line without a name continues the one above."""
    _, _, below = head(path).partition("# Variants, as keys after the command:\n")
    found = []
    for line in below.partition("\n#\n")[0].splitlines():
        name, keys = re.fullmatch(r"#   (.{20}) (.+)", line).groups()
        if name.strip():
            found.append([])
        found[-1] += shlex.split(keys)
    return found


def dry_run_on_a_miniature(path, root, models):
    """Run `--dry-run` with data, model and folders under `root`; return the exit status."""
    config = load_config(path, [])
    (method,) = config.methods
    is_large = method.name == "sgd_mix"
    WRITERS[config.data.source](root / "data", **(CUB_IMAGES if is_large else {}))
    model = models["instruct" if method.name == "diffusemix" else "translate"]
    words = (f"generation.model={model}", "optim.batch_size=2")
    return dry_run(path, root, root / "data", *words)


def write_folder(root):
    """Write an image folder with official training and test images."""
    for split, label, k in shots(2):
        picture(root / split / ("accordion", "airplanes")[label] / f"{k}.jpg", label, k)


def dry_run(path, root, data, *words):
    """Run `--dry-run` with all folders but the data under `root`; return the exit status."""
    places = {
        "data.root": data,
        "finetune.path": root / "finetuned",
        "fractals.path": root / "fractals",
        "cache.path": root / "cache",
        "run.dir": root / "runs",
        "classifier.pretrained": "false",  # tests fetch nothing
    }
    keys = (f"{key}={place}" for key, place in places.items())
    return main([str(path), *words, *keys, "--dry-run"])


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
    listed = {name: part if isinstance(part, list) else [part] for name, part in sections.items()}
    pairs = [(name, key) for name, parts in listed.items() for part in parts for key in part]
    assert {f"{name}.{key}" for name, key in pairs} <= set(fields())


def test_the_schema_is_the_one_of_the_models():
    # Write it again with `make schema`.
    assert json.loads((FOLDER / "schema.json").read_text()) == json_schema()


def test_each_paper_has_its_recipes():
    names = {path.stem.partition("_")[0] for path in PAPERS}
    assert {"cub", "aircraft", "cars", "dogs", "flowers", "waterbirds"} <= names
    methods = {each.name for path in PAPERS for each in load_config(path, []).methods}
    assert methods == {"diff_mix", "diffusemix", "sgd_mix"}


@pytest.mark.parametrize("path", PAPERS, ids=lambda path: path.stem)
@pytest.mark.parametrize("word", ["Paper:", "Disk:", "Not known:"])
def test_a_paper_s_recipe_says_its_source_its_disk_and_what_is_not_known(path, word):
    assert f"# {word}" in head(path)


@pytest.mark.parametrize("path", PAPERS, ids=lambda path: path.stem)
def test_the_command_of_a_paper_s_recipe_is_its_own(path):
    assert f"online-aug train {path.stem} data.root=" in head(path)


@pytest.mark.parametrize("path", PAPERS, ids=lambda path: path.stem)
def test_every_variant_that_a_head_names_loads(path):
    found = variants(path)
    assert found
    assert all(load_config(path, keys) != load_config(path, []) for keys in found)


@pytest.mark.slow
@pytest.mark.parametrize("path", PAPERS, ids=lambda path: path.stem)
def test_a_paper_s_recipe_passes_a_dry_run_on_a_miniature_of_its_data(
    path, tmp_path, tiny_model, tiny_editor, monkeypatch, capsys
):
    accept_small_flowers(monkeypatch)
    models = {"translate": tiny_model, "instruct": tiny_editor}
    assert dry_run_on_a_miniature(path, tmp_path, models) == 0
    assert "requests   " in capsys.readouterr().out
    assert sorted(place.name for place in tmp_path.iterdir()) == ["data"]


@pytest.mark.slow
@pytest.mark.parametrize("path", OF_DIFFDA, ids=lambda path: path.stem)
def test_a_recipe_of_diffda_passes_a_dry_run_on_a_miniature_of_its_data(
    path, tmp_path, tiny_model, tiny_editor, capsys
):
    config, data = load_config(path, []), tmp_path / "data"
    shots_of = config.data.examples_per_class
    if config.data.source in PUBLISHED:
        WRITERS[config.data.source](data, **({"train": 2 * shots_of} if shots_of else {}))
    else:
        write_folder(data)
    model = tiny_editor if config.method.name == "diffusemix" else tiny_model
    words = [f"generation.model={model}", "optim.batch_size=2"]
    words += [] if config.data.source in PUBLISHED else [f"data.source={data}"]
    assert dry_run(path, tmp_path, data, *words) == 0
    assert "requests   " in capsys.readouterr().out
    assert sorted(place.name for place in tmp_path.iterdir()) == ["data"]


@pytest.mark.slow
@pytest.mark.parametrize("path", OTHERS, ids=lambda path: path.stem)
def test_every_other_recipe_passes_a_dry_run_on_its_data(path, embedded_root, tmp_path, capsys):
    assert dry_run(path, tmp_path, embedded_root) == 0
    assert re.search("requests   |no images to make", capsys.readouterr().out)
    assert list(tmp_path.iterdir()) == []


PAGE = Path(__file__).parents[2] / "docs" / "PAPERS.md"


def rows_of_page():
    """Yield recipe and disk of each row of docs/PAPERS.md that has both."""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 5 and (found := re.match(r"`(\w+)`", cells[1])):
            yield found[1], cells[2], cells[4]


def test_the_page_of_the_papers_has_every_recipe_of_a_paper():
    assert {path.stem for path in PAPERS} <= {name for name, *_ in rows_of_page()}


def test_the_page_of_the_papers_agrees_with_the_heads():
    for path in PAPERS:
        made, disk = next((made, disk) for name, made, disk in rows_of_page() if name == path.stem)
        assert f"at most {disk} GiB" in head(path), path.stem
        assert re.search(rf"{re.escape(made)} (generated|edited) images", head(path)), path.stem


def test_every_recipe_that_the_page_of_the_papers_names_is_there():
    named = set(
        re.findall(
            r"(?:diffda/|da_fusion/)?\b(?:cub|aircraft|cars|dogs|flowers|pascal)_\w+_\w+",
            PAGE.read_text(),
        )
    )
    assert named
    for name in named:
        find_recipe(name)
