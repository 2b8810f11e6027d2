"""Results of thousands of classes stay readable, and the whole table is a file."""

import csv

import numpy as np
import pytest
from run_records import evaluation, summary, write_run

from online_aug.reporting.class_results import (
    CLASSES_FILE,
    EXTREMES,
    class_table,
    draw_confusion,
    mistakes,
    write_results,
)
from online_aug.reporting.html_report.classes import FOLDED
from online_aug.reporting.html_report.write import write_report
from online_aug.reporting.run_directory import EVALUATION_FILE

CONFUSION = {"crow": {"crow": 1, "jay": 3}, "jay": {"jay": 9, "crow": 1}, "kite": {"kite": 2}}


def many(classes):
    """Return a confusion in which class n is taken for the next one in n of so many images."""
    names = [f"class {n:05d}" for n in range(classes)]
    return {
        name: {key: count for key, count in ((name, classes - n), (names[n - 1], n)) if count}
        for n, name in enumerate(names)
    }


def test_the_commonest_mistakes_come_first():
    first, second = mistakes(CONFUSION, 5)
    assert first == ("crow", "jay", 3, 0.75)
    assert second == ("jay", "crow", 1, 0.1)
    assert mistakes(CONFUSION, 1) == [first]


def test_the_table_has_a_row_for_each_class_worst_first(tmp_path):
    write_results(tmp_path, evaluation(CONFUSION))
    rows = list(csv.DictReader((tmp_path / CLASSES_FILE).read_text().splitlines()))
    assert [row["class"] for row in rows] == ["crow", "jay", "kite"]
    assert rows[0] == {
        "class": "crow",
        "recognised": "0.25",
        "images": "4",
        "most_taken_for": "jay",
        "images_taken_for_it": "3",
    }
    assert rows[2]["most_taken_for"] == ""
    assert (tmp_path / EVALUATION_FILE).is_file()


@pytest.mark.parametrize("classes", [41, 1000])
def test_of_many_classes_the_page_shows_the_worst_and_the_best_and_folds_the_rest(
    tmp_path, classes
):
    page = page_of(tmp_path, classes)
    shown, _, rest = page.partition("<details>")
    assert f"{classes:,} classes: median " in shown
    assert f"The {EXTREMES} worst and the {EXTREMES} best:" in shown
    for number in (0, EXTREMES - 1, classes - EXTREMES, classes - 1):
        assert f"class {number:05d}" in shown
    assert f"All {classes:,} classes" in rest


def page_of(folder, classes):
    found = evaluation(many(classes))
    end = summary(per_class=found.per_class)
    write_run(folder, end=end)
    return (
        write_report(folder, summary=end, evaluation=found)
        .read_text()
        .partition("recognised of")[2]
    )


def test_of_more_classes_than_a_page_holds_it_names_the_file(tmp_path):
    page = page_of(tmp_path, FOLDED + 1)
    assert f"All of them are in {CLASSES_FILE} in the run directory." in page
    assert len(page) < 100_000
    assert "<svg" not in page.partition("Confusions")[2].partition("</section>")[0]


@pytest.mark.parametrize("classes", [251, 21_841])
def test_the_picture_of_many_classes_lists_mistakes_and_is_small(classes):
    names = [f"class {n}" for n in range(classes)]
    picture = draw_confusion(names, {"class 0": {"class 0": 1, "class 2": 3}}).astype(int)
    assert picture.size < 2_000_000
    assert (picture[..., 0] > picture[..., 1] + 15).any()


def test_a_picture_without_a_mistake_is_drawn_too():
    assert draw_confusion(["x"] * 300, {"x": {"x": 1}}).shape[2] == 3


def test_the_table_of_21_841_classes_is_a_megabyte():
    content = class_table(evaluation(many(21_841)))
    assert content.count("\n") == 21_842
    assert len(content) < 2_000_000
    assert np.isfinite(float(content.splitlines()[1].split(",")[1]))
