"""The recipes of DA-Fusion's few-shot benchmark, each with a dry run on a miniature of its data."""

import numpy as np
import pytest
from PIL import Image
from published_samples import WRITERS, accept_small_flowers

from online_aug.cli.compare import VANILLA, rows_of
from online_aug.cli.main import Command
from online_aug.cli.train import main
from online_aug.config.loading import RECIPES, load_config

SETS = ("pascal_voc", "flowers", "caltech101", "spurge")
METHODS = ("da_fusion", "real_guidance")
PATHS = sorted((RECIPES / "da_fusion").glob("*.yaml"))
STEPS = 200


def variants(path):
    """Return the keys of each variant in a head; a line without a name continues the one above."""
    _, _, below = path.read_text().partition("# Variants, as keys after the command:\n")
    found = []
    for line in below.partition("\n#\n")[0].splitlines():
        name, keys = line[1:24].strip(), line[24:].split()
        if name:
            found.append([])
        found[-1] += keys
    return found


def write_class_folders(root):
    """Write one folder of class folders, as Caltech-101 comes."""
    for number in range(24):
        path = root / f"class_{number % 3}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (16, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)


def test_there_is_a_recipe_for_each_set_and_method():
    assert {path.stem for path in PATHS} == {f"{s}_{method}" for s in SETS for method in METHODS}


@pytest.mark.parametrize("name", SETS)
def test_the_recipes_of_a_set_stand_in_one_table_with_one_vanilla_twin(name):
    first, other = (
        Command(recipe=f"da_fusion/{name}_{method}", overrides=("data.seed=3",))
        for method in METHODS
    )
    rows = rows_of(first, [other])
    assert [*rows] == [VANILLA, *(f"{name}_{method}" for method in METHODS)]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_every_variant_of_a_head_loads_with_about_as_many_steps(path):
    classes = {"pascal_voc": 20, "flowers": 102, "caltech101": 102, "spurge": 2}
    found = [load_config(path, keys) for keys in ([], *variants(path))]
    assert len(found) >= 3
    for config in found:
        (name,) = (name for name in classes if path.stem.startswith(name))
        samples = classes[name] * config.data.examples_per_class * config.data.epoch_repeats
        assert samples // config.optim.batch_size == pytest.approx(STEPS, rel=0.03)
        assert config.generation.variants_per_image == 10
        assert (config.mixing.policy, config.mixing.synthetic_probability) == ("local", 0.5)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_head_says_what_a_person_asks_first(path):
    head = path.read_text().partition("\n\n")[0]
    assert head.startswith("# yaml-language-server: $schema=../schema.json")
    for word in ("Paper:", "Command:", "Hardware:", "Duration:", "Disk:", "Expected:"):
        assert f"# {word}" in head
    assert f"online-aug train da_fusion/{path.stem} data." in head


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_recipe_passes_a_dry_run_on_a_miniature_of_its_data(
    path, tmp_path, miniature_of, monkeypatch, capsys
):
    accept_small_flowers(monkeypatch)
    source, root = load_config(path, []).data.source, tmp_path / "data"
    if source in WRITERS:
        WRITERS[source](root)
        place = f"data.root={root}"
    else:
        write_class_folders(root / source)
        place = f"data.source={root / source}"
    folders = ("finetune.path", "cache.path", "run.dir")
    keys = [f"{key}={tmp_path / key}" for key in folders]
    words = [place, f"generation.model={miniature_of(1)}", "data.examples_per_class=1", *keys]
    assert (
        main([str(path), *words, "optim.batch_size=2", "classifier.pretrained=false", "--dry-run"])
        == 0
    )
    assert "requests   " in capsys.readouterr().out
    assert [each.name for each in tmp_path.iterdir()] == ["data"]
