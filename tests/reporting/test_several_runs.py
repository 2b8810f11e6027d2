"""The page of several runs: recipes over seeds against a baseline, and what is refused."""

import re

import pytest
from run_records import summary, write_run

from online_aug.cli.report import main
from online_aug.errors import UserError
from online_aug.reporting.html_report.recorded_run import read_run
from online_aug.reporting.html_report.several_runs import group_runs, several_runs_page

VANILLA = {"mixing": {"synthetic_probability": 0.0}}
MIXED = {"mixing": {"synthetic_probability": 0.5}}


def write(folder, recipe, seed, settings, top1=0.9, per_class=None, **changes):
    end = summary(top1=top1, per_class=per_class or {"null": top1, "Möwe": top1}, **changes)
    seeded = {**settings, "run": {"seed": seed, "name": f"{recipe}-seed{seed}"}}
    return write_run(folder / f"{recipe}-seed{seed}", settings=seeded, end=end)


@pytest.fixture
def folders(tmp_path):
    """Two recipes of two seeds; the one with synthetic images comes first."""
    return [
        write(tmp_path, "mix", 0, MIXED, 0.92, {"null": 0.80, "Möwe": 0.90}),
        write(tmp_path, "mix", 1, MIXED, 0.94, {"null": 0.82, "Möwe": 0.96}),
        write(tmp_path, "vanilla", 0, VANILLA, 0.90, {"null": 0.90, "Möwe": 0.80}),
        write(tmp_path, "vanilla", 1, VANILLA, 0.90, {"null": 0.90, "Möwe": 0.80}),
    ]


def page_of(folders):
    return several_runs_page([read_run(folder) for folder in folders])


def row(page, section, name):
    """The cells of a row of the table of a section."""
    _, _, rest = page.partition(f"<h2>{section}</h2>")
    found = re.search(rf'<tr><th scope="row">{name}</th>(.*?)</tr>', rest)
    return re.sub(r"<[^>]+>", "|", found[1]).replace("||", "|").strip("|").split("|")


def test_runs_that_differ_by_their_seeds_are_one_recipe(folders):
    recipes = group_runs([read_run(folder) for folder in folders])
    assert [(recipe.name, len(recipe.runs)) for recipe in recipes] == [("mix", 2), ("vanilla", 2)]


def test_the_same_recipe_and_seed_twice_are_two_recipes(tmp_path):
    settings = {"run": {"seed": 0}}
    first, again = (read_run(write_run(tmp_path / name, settings=settings)) for name in "ab")
    assert [recipe.name for recipe in group_runs([first, again])] == ["a", "b"]


def test_the_run_without_synthetic_images_is_the_baseline(folders):
    page = page_of(folders)
    assert "the baseline is vanilla (no synthetic images)" in page
    assert row(page, "Results", "mix")[:3] == ["2", "93.0 ± 12.7", "+3.0 ± 12.7"]
    assert row(page, "Results", "vanilla")[1] == "90.0 ± 0.0"


def test_every_class_has_its_change_against_the_baseline_losses_first(folders):
    page = page_of(folders)
    title = "Classes: mix against vanilla"
    assert row(page, title, "null")[0].startswith("-9.0")
    assert row(page, title, "Möwe")[0].startswith("+13.0")
    _, _, rest = page.partition(title)
    assert rest.index(">null<") < rest.index(">Möwe<")
    assert "1 classes lose, 1 gain" in rest


def test_only_seeds_that_both_have_count_for_a_change(folders, tmp_path):
    third = write(tmp_path, "vanilla", 7, VANILLA, 0.2, {"null": 0.1, "Möwe": 0.1})
    page = page_of([*folders, third])
    assert row(page, "Results", "mix")[2] == "+3.0 ± 12.7"
    assert row(page, "Classes: mix against vanilla", "null")[0].startswith("-9.0")


def test_runs_without_a_common_seed_differ_by_their_means(tmp_path):
    folders = [write(tmp_path, "vanilla", 0, VANILLA, 0.5), write(tmp_path, "mix", 1, MIXED, 0.6)]
    assert row(page_of(folders), "Results", "mix")[:3] == ["1", "60.0", "+10.0"]


def test_the_worst_group_is_compared_too(tmp_path):
    groups = [{"land": 0.5, "water": 0.8}, {"land": 0.7, "water": 0.8}]
    folders = [
        write(tmp_path, name, 0, settings, per_group=each, worst_group=min(each.values()))
        for name, settings, each in zip(("vanilla", "mix"), (VANILLA, MIXED), groups, strict=True)
    ]
    page = page_of(folders)
    assert row(page, "Accuracy by groups", "land") == ["50.0", "70.0", "+20.0"]
    assert row(page, "Results", "mix")[3:5] == ["70.0", "+20.0"]


def test_settings_that_differ_are_named_and_others_are_not(folders):
    page = page_of(folders)
    assert row(page, "How the recipes differ", "mixing.synthetic_probability") == ["0.5", "0.0"]
    differ, _, _ = page.partition("<h2>Curves</h2>")
    assert "data.source" not in differ


def test_curves_are_overlaid_with_a_band_over_seeds(folders):
    _, _, chart = page_of(folders).partition("Validation top-1")
    chart, _, _ = chart.partition("</svg>")
    assert chart.count("<polyline") == 2
    assert chart.count("<polygon") == 2


def test_a_run_in_training_is_shown_and_left_out_of_the_means(folders, tmp_path):
    settings = {**MIXED, "run": {"seed": 2, "name": "mix-seed2"}}
    page = page_of([*folders, write_run(tmp_path / "mix-seed2", settings=settings, epochs=1)])
    assert row(page, "Results", "mix")[0] == "2"
    assert row(page, "Every run", "mix-seed2")[:3] == ["2", "1/3", "in training"]


def test_runs_of_other_data_are_refused_in_one_line(folders, tmp_path, capsys):
    other = write_run(tmp_path / "other", settings={"data": {"source": "cub"}}, end=summary())
    out = tmp_path / "page.html"
    with pytest.raises(UserError, match=r"^runs of one report must be of one data set, .*cub"):
        main([*map(str, folders), str(other), "--out", str(out)])
    assert not out.exists()


def test_runs_of_other_classes_are_refused_in_one_line(folders, tmp_path):
    other = write(tmp_path, "few", 0, MIXED, per_class={"gull": 0.5})
    with pytest.raises(UserError, match=r"^runs of one report must be of the same classes"):
        page_of([*folders, other])


def test_the_command_says_where_the_page_is(folders, tmp_path, capsys):
    main([str(folders[0])])
    assert capsys.readouterr().out == f"written to {folders[0] / 'report.html'}\n"
    assert "<h1>mix-seed0</h1>" in (folders[0] / "report.html").read_text()
    main([*map(str, folders)])
    assert capsys.readouterr().out == f"written to {tmp_path / 'comparison.html'}\n"
    assert "4 runs on" in (tmp_path / "comparison.html").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], r"^a run must be a folder, not found: nowhere$"),
        ([], r"required: RUN; see online-aug report --help$"),
        (["RUN", "--out", "no/such/page.html"], r"^--out must be a file in a folder that exists"),
        (["RUN", "--out", "."], r"^--out must be a file in a folder that exists, \. is a folder$"),
    ],
)
def test_a_mistake_is_one_line(folders, words, message):
    with pytest.raises(UserError, match=message):
        main([str(folders[0]) if word == "RUN" else word for word in words])
