"""`online-aug compare`, in this process, with trainings that are invented."""

import json

import pytest
from comparison_samples import finish

from online_aug.cli.main import run_command
from online_aug.comparison.launches import Launches
from online_aug.errors import RunError, UserError

RECIPE = """
data: {source: digits, metaclass: digit, image_size: 32, examples_per_class: 4, root: ROOT}
method: {name: paste, candidates: [2, 4]}
saliency: {method: spectral_residual}
classifier: {name: test_resnet}
run: {epochs: 1, dir: RUNS}
optim: {batch_size: 10}
"""


@pytest.fixture
def recipe(tmp_path, embedded_root):
    path = tmp_path / "tiny.yaml"
    text = RECIPE.replace("ROOT", str(embedded_root)).replace("RUNS", str(tmp_path / "runs"))
    path.write_text(text)
    return path


@pytest.fixture
def launched(monkeypatch):
    """The runs that were launched; each leaves what a training leaves, and vanilla is worse."""
    found = []

    def train(self, command, run, *, is_shown):
        found.append(run.folder.name)
        finish(run, 0.5 if run.row == "vanilla" else 0.75)
        (run.folder / "gallery.png").write_bytes(b"")
        return 0

    monkeypatch.setattr(Launches, "run", train)
    return found


def refusal(recipe, *argv):
    before = sorted(recipe.parent.rglob("*"))
    with pytest.raises(UserError) as caught:
        run_command(["compare", str(recipe), *argv])
    assert sorted(recipe.parent.rglob("*")) == before
    return str(caught.value)


def test_both_sides_are_trained_for_each_seed_and_end_in_one_table(recipe, launched, capfd):
    assert run_command(["compare", str(recipe), "--seeds=2", "run.seed=3"]) == 0
    assert launched == [
        *("vanilla-seed3", "augmented-seed3"),
        *("vanilla-seed4", "augmented-seed4"),
    ]
    out = capfd.readouterr().out
    assert "vanilla, seed 3 (1 of 4)" in out
    assert "Means over 2 seeds with 95 % intervals; differences are paired by seed." in out
    folder = recipe.parent / "runs" / "compare-tiny"
    assert "| test - vanilla |  | +25.0 ± 0.0 |" in (folder / "compare.md").read_text()
    record = json.loads((folder / "compare.json").read_text())
    assert record["rows"]["augmented"]["4"]["test"] == 0.75
    assert "4 runs on" in (folder / "report.html").read_text()
    assert out.splitlines()[-3:] == [
        f"{folder}/report.html",
        f"{folder}/augmented-seed3/gallery.png",
        f"{folder}/compare.md",
    ]


def test_finished_runs_are_not_repeated_and_more_seeds_can_be_added(recipe, launched, capfd):
    run_command(["compare", str(recipe), "--seeds=1"])
    assert "One seed: single numbers" in capfd.readouterr().out
    run_command(["compare", str(recipe), "--seeds=2"])
    assert launched[2:] == ["vanilla-seed1", "augmented-seed1"]
    assert "vanilla, seed 0 (1 of 4): finished before, test 50.0 %" in capfd.readouterr().out


def test_a_failed_training_names_its_log(recipe, monkeypatch):
    monkeypatch.setattr(Launches, "run", lambda *args, **keys: 137)
    with pytest.raises(RunError) as caught:
        run_command(["compare", str(recipe)])
    log = recipe.parent / "runs" / "compare-tiny" / "vanilla-seed0.log"
    assert str(caught.value).startswith(f"vanilla, seed 0 ended with status 137, see {log};")


def test_runs_of_other_settings_are_refused(recipe, launched):
    run_command(["compare", str(recipe), "--seeds=1"])
    assert "has another optim.lr (0.003 there, 0.1 now)" in refusal(recipe, "optim.lr=0.1")


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["--seeds=0"], "--seeds must be at least 1, got 0"),
        (["--seeds=x"], "argument --seeds: invalid int value: 'x'; see online-aug compare --help"),
        (["mixing.synthetic_probability=0"], "mixing.synthetic_probability must be above 0 to "),
        (["run.name=mine"], "run.name must be left out to compare several runs, got mine; --out"),
        (["optim.lrr=1"], "optim.lrr is no known key, got 1; did you mean optim.lr?"),
        (["data.examples_per_class=4000"], "class '0' must have at least 4000 training"),
        (["optim.batch_size=4000"], "optim.batch_size must be at most 40, the samples of an "),
        (["method.candidates=[30, 50]"], "method.candidates must be at most 39"),
    ],
)
def test_what_cannot_be_compared_is_one_line_and_nothing_is_written(recipe, argv, line):
    said = refusal(recipe, *argv)
    assert said.startswith(line)
    assert "\n" not in said


@pytest.mark.parametrize("below", ["", "/inside"])
def test_a_file_in_the_place_of_its_folder_is_refused(recipe, below):
    said = refusal(recipe, f"--out={recipe}{below}")
    assert said == (
        f"--out must be a folder that can be written, got {recipe}{below}: {recipe} is a file"
    )


def test_the_command_of_the_table_says_whether_each_seed_cuts_the_data_anew(recipe, launched):
    run_command(["compare", str(recipe), "--seeds=1", "--cuts"])
    table = (recipe.parent / "runs" / "compare-tiny" / "compare.md").read_text()
    assert f"`online-aug compare {recipe} --seeds 1 --cuts`" in table


def test_a_seed_that_served_no_synthetic_image_is_named(recipe, launched, capfd):
    run_command(["compare", str(recipe), "--seeds=1"])
    assert "Seed 0 served no synthetic image" in capfd.readouterr().out


def test_a_launcher_cannot_start_it(recipe, monkeypatch):
    launched = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "MASTER_ADDR": "x", "MASTER_PORT": 1}
    for name, value in launched.items():
        monkeypatch.setenv(name, str(value))
    assert (
        refusal(recipe) == "compare must be started without a launcher: it starts trainings itself"
    )


def test_several_recipes_share_the_twin_and_the_table(recipe, launched, capfd):
    other = recipe.with_name("tiny_half.yaml")
    other.write_text(recipe.read_text() + "mixing: {synthetic_probability: 0.5}\n")
    assert run_command(["compare", str(recipe), str(other), "--seeds=1", "run.seed=2"]) == 0
    assert launched == ["vanilla-seed2", "tiny-seed2", "tiny_half-seed2"]
    folder = recipe.parent / "runs" / "compare-tiny"
    table = (folder / "compare.md").read_text()
    assert "# 2 recipes and the vanilla twin on digits" in table
    for row in ("| vanilla |", "| tiny |", "| tiny_half |"):
        assert row in table


def test_recipes_that_train_differently_are_not_in_one_table(recipe, launched):
    other = recipe.with_name("longer.yaml")
    other.write_text(recipe.read_text().replace("epochs: 1", "epochs: 2"))
    said = refusal(recipe, str(other))
    assert "recipes must have one vanilla twin to be in one table" in said
    assert "run.epochs (1 there, 2 now)" in said
    assert launched == []


def test_a_recipe_twice_is_refused(recipe, launched):
    assert "must have names of their own" in refusal(recipe, str(recipe))
