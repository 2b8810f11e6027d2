"""The study of masks measures foregrounds, draws them, and says what to try."""

import csv
import re
from pathlib import Path

import numpy as np
import pytest
from experiment_samples import make_config
from PIL import Image

from online_aug.cli.main import run_command
from online_aug.config.loading import load_config, resolved_yaml
from online_aug.console import percent
from online_aug.data.sources import load_splits
from online_aug.errors import UserError
from online_aug.experiment.experiment import Experiment
from online_aug.experiment.foregrounds import ensure_saliency
from online_aug.studies import masks

WIDTH, HEIGHT = 20, 16


@pytest.fixture
def recipe(tmp_path, tiny_model):
    """SGD-Mix on noise, with a folder of masks that has a box for each training image."""
    config = make_config(
        tmp_path,
        tiny_model,
        finetune={"enabled": False},
        method={"name": "sgd_mix", "candidates": [2, 4], "strength": 0.5},
        saliency={"method": "spectral_residual"},
    )
    for name in ("crow", "jay"):
        folder = tmp_path / "masks" / "train" / name
        folder.mkdir(parents=True)
        for number in range(4):
            mask = np.zeros((HEIGHT, WIDTH), np.bool_)
            mask[4:12, number : number + 10] = True
            Image.fromarray(mask).save(folder / f"{number}.png")
    path = tmp_path / "recipe.yaml"
    path.write_text(resolved_yaml(config))
    return path


def study(recipe, *argv):
    """Run the study and return what it wrote: the folder and the text of the table."""
    out = recipe.parent / "out"
    assert run_command(["study", "masks", str(recipe), f"--out={out}", *argv]) == 0
    return out, (out / "masks.md").read_text()


def truth_of(recipe):
    return f"--truth={recipe.parent / 'masks'}"


def refusal(recipe, *argv):
    before = sorted(recipe.parent.rglob("*"))
    with pytest.raises(UserError) as caught:
        study(recipe, *argv)
    assert sorted(recipe.parent.rglob("*")) == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_true_masks_say_that_the_objects_are_not_held_and_what_to_try(recipe, capsys):
    out, text = study(recipe, "--samples=6", truth_of(recipe))
    assert capsys.readouterr().out.endswith(f"{text}\nwritten to {out}\n")
    assert "SGD-Mix's assumption is broken for this data" in text
    assert "Try " in text
    assert "`saliency.method: masks` with a folder of masks" in text
    with (out / "masks.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["mask"] for row in rows] == ["otsu"] * 6 + ["grabcut"] * 6
    used = [float(row["covered"]) for row in rows[:6]]
    held = sum(share >= 0.8 for share in used) / 6
    line = next(line for line in text.splitlines() if line.startswith("| otsu (in use)"))
    assert line.split(" | ")[2] == percent(held)
    with Image.open(out / "masks.png") as sheet:
        assert sheet.height > sheet.width // 2 > 300


def test_masks_that_are_the_truth_hold_the_objects(recipe):
    keys = ["saliency.method=masks", f"saliency.masks={recipe.parent / 'masks'}"]
    out, text = study(recipe, *keys, "saliency.mask=otsu", "--samples=8", truth_of(recipe))
    assert "The foregrounds hold the objects: 100.0 % are covered." in text
    with (out / "masks.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["mask"] == "otsu"]
    assert min(float(row["iou"]) for row in rows) > 0.9


def test_the_same_seed_repeats_the_table_and_another_draws_other_images(recipe):
    first = [
        (study(recipe, "--samples=4", truth_of(recipe))[0] / name).read_bytes()
        for name in ("masks.md", "masks.csv", "masks.png")
    ]
    again, _ = study(recipe, "--samples=4", truth_of(recipe))
    assert [(again / name).read_bytes() for name in ("masks.md", "masks.csv", "masks.png")] == first
    other, _ = study(recipe, "--samples=4", "--seed=1", truth_of(recipe))
    assert (other / "masks.csv").read_bytes() != first[1]


def test_without_true_masks_two_ways_are_compared(recipe):
    keys = ["saliency.method=masks", f"saliency.masks={recipe.parent / 'masks'}"]
    _, text = study(recipe, *keys, "--samples=4")
    assert "compared with maps of spectral_residual, cut by Otsu" in text
    assert "The two ways disagree on" in text
    assert "`--truth DIR` compares with true masks" in text


def test_maps_of_the_cache_are_read(recipe, monkeypatch):
    _, made = study(recipe, truth_of(recipe), "--samples=4")
    config = load_config(Path(recipe), [])
    ensure_saliency(Experiment(config, load_splits(config.data), "cpu"))
    monkeypatch.setattr(masks, "made_maps", None)
    _, read = study(recipe, truth_of(recipe), "--samples=4")
    assert read == made


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["method=[{name: diff_mix}]"], "method.name must be one that cuts out foregrounds"),
        (["saliency.method=grad_cam", "saliency.teacher=classifier"], "saliency.teacher must be"),
        (["--samples=9"], "--samples must be at least 2 and at most 8, the different training"),
        (["--samples=1"], "--samples must be at least 2"),
        (["--samples=4", "--truth={place}/none"], "must be a folder"),
        (["--samples=4", "--truth={place}/masks/train/crow"], "mask .* is missing"),
        (["--out={place}/recipe.yaml"], "--out must be a folder that can be written, .* is a file"),
        (["--sample=4"], "unrecognized arguments: --sample=4; see online-aug study masks --help"),
    ],
)
def test_what_cannot_be_studied_is_refused_in_a_line(recipe, argv, said):
    argv = [word.format(place=recipe.parent) if "{place}" in word else word for word in argv]
    assert re.search(said, refusal(recipe, *argv))


def test_the_help_lists_the_studies_and_an_unknown_one_is_refused(capsys):
    with pytest.raises(SystemExit):
        run_command(["study", "--help"])
    assert "masks          whether the foregrounds hold the objects" in capsys.readouterr().out
    with pytest.raises(UserError, match="must be one of masks, .*got mask; nearest: mas"):
        run_command(["study", "mask"])
