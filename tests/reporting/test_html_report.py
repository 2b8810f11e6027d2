"""The page of a run stands alone and says what happened."""

import math
import re
from html.parser import HTMLParser

import pytest
from run_records import CONFUSION, summary, write_run

from online_aug.errors import UserError
from online_aug.reporting.html_report import REPORT_FILE, write_report
from online_aug.reporting.html_report.charts import Line, line_chart, nice_ticks
from online_aug.reporting.samples import Sample, Samples

NEVER_CLOSED = {"meta", "img", "br"}
SAMPLES = Samples(
    looked_at=5,
    samples=[
        Sample(
            group="hardest",
            pictures={"source": "UklGRg==", "final": "UklGRg=="},
            source="null",
            asked_for="Möwe",
            method="",
            strength=0.7,
            soft_label={"null": 0.4, "Möwe": 0.6},
            loss=2.25,
            taken_for="null",
            scores={"clip": 0.5},
        ),
        Sample(
            group="rejected",
            pictures={"source": "UklGRg=="},
            source="null",
            asked_for="Möwe",
            method="diff_mix",
            reason="off-class",
        ),
    ],
)


def page_of(folder, **wishes):
    write_run(folder / "seed0", **{"end": summary(), **wishes})
    return write_report(folder / "seed0").read_text()


class Outline(HTMLParser):
    """Checks that every element is closed, and collects what the page would load."""

    def __init__(self):
        super().__init__()
        self.open, self.loaded, self.pictures = [], [], []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.loaded += [
            values[name] for name in ("src", "href", "srcset", "data") if name in values
        ]
        if tag == "img":
            self.pictures.append(values)
        if tag not in NEVER_CLOSED:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, self.getpos()


def outline(page):
    found = Outline()
    found.feed(page)
    found.close()
    return found


def test_the_page_is_whole_and_loads_nothing_from_elsewhere(tmp_path):
    page = page_of(tmp_path, samples=SAMPLES)
    found = outline(page)
    assert found.open == []
    assert found.loaded
    assert all(address.startswith("data:") for address in found.loaded)
    assert not re.search(r"url\(|@import|<script|http", page)


def test_every_picture_and_chart_says_what_it_shows(tmp_path):
    page = page_of(tmp_path, samples=SAMPLES)
    assert all(len(picture["alt"]) > 10 for picture in outline(page).pictures)
    assert page.count("<svg") == len(
        re.findall(r'<svg [^>]*role="img" aria-label="[^"]{10,}"', page)
    )


def test_names_and_values_from_files_are_escaped(tmp_path):
    page = page_of(tmp_path)
    assert "&lt;digits&gt;" in page
    assert "<digits>" not in page


def test_every_epoch_is_a_point_of_the_accuracy_curve(tmp_path):
    figure = re.search(r"Validation accuracy.*?points=\"([^\"]*)\"", page_of(tmp_path))
    assert figure is not None
    assert len(figure.group(1).split()) == 3


def test_a_loss_that_is_no_number_leaves_no_mark_in_the_chart(tmp_path):
    assert "nan" not in page_of(tmp_path, changes={"train_loss": math.nan}).lower()


def test_figures_are_those_of_summary_and_metrics(tmp_path):
    page = page_of(tmp_path, end=summary(rejections={"off-class": 7}))
    assert "<b>90.0 %</b><span>test top-1, last epoch" in page
    assert "<b>91.0 %</b><span>test top-1, best validation epoch (2)" in page
    assert re.search(r"real</th><td class=\"n\">180</td><td class=\"n\">60.0 %", page)
    assert re.search(r"off-class</th><td class=\"n\">7</td>", page)
    assert re.search(r"waiting for batches</th><td class=\"n\">1.5 s</td>", page)


def test_settings_that_are_not_the_defaults_come_with_the_default(tmp_path):
    page = page_of(tmp_path, settings={"optim": {"lr": 0.25}, "mixing": {"policy": "global"}})
    shown, _, _ = page.partition("All settings")
    assert re.search(r"optim.lr</code> <b>0.25</b> <small>default 0.003<", shown)
    assert "mixing.policy" not in shown


def test_the_confusion_matrix_has_every_count(tmp_path):
    page = page_of(tmp_path)
    _, _, matrix = page.partition("What was taken for what")
    counts = [int(n) for n in re.findall(r'text-anchor="middle">(\d+)</text>', matrix)]
    assert sorted(counts) == sorted(n for row in CONFUSION.values() for n in row.values())
    assert "null</th><td>Möwe</td>" in matrix


def test_samples_say_what_was_asked_for_and_what_became_of_it(tmp_path):
    page = page_of(tmp_path, samples=SAMPLES)
    assert "null, asked for Möwe, strength 0.70" in page
    assert "label: Möwe 0.60, null 0.40" in page
    assert "taken for null, loss 2.25" in page
    assert "rejected: off-class" in page


def test_a_run_in_training_has_a_page_too(tmp_path):
    page = page_of(tmp_path, end=None, epochs=2)
    assert "in training, epoch 2 of 3" in page
    assert "best validation top-1" in page
    assert outline(page).open == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"^a run must be a folder, not found: .*seed0$"),
        ({}, r"^a run directory must hold config.yaml, .*seed0 does not$"),
        ({"config.yaml": "{}"}, r"metrics.jsonl must hold at least one epoch, got none"),
        ({"config.yaml": "{}", "metrics.jsonl": ""}, r"metrics.jsonl must hold at least one epoch"),
    ],
)
def test_what_is_not_a_run_is_one_line_and_writes_nothing(tmp_path, content, message):
    folder = tmp_path / "seed0"
    if content is not None:
        folder.mkdir()
        for name, text in content.items():
            (folder / name).write_text(text)
    with pytest.raises(UserError, match=message):
        write_report(folder)
    assert not (folder / REPORT_FILE).exists()


def test_an_ordinary_page_is_small(tmp_path):
    assert len(page_of(tmp_path, epochs=200)) < 200_000


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 2.42), (-3, 5), (0, 0.012), (1, 300)])
def test_ticks_are_round_and_enclose_the_values(low, high):
    ticks = nice_ticks(low, high)
    assert ticks[0] <= low
    assert ticks[-1] >= high
    assert 2 <= len(ticks) <= 8
    step = ticks[1] - ticks[0]
    assert f"{step:e}"[0] in "125"


def test_a_gap_in_a_curve_stays_a_gap():
    chart = line_chart("loss", [1, 2, 3, 4], [Line("loss", [1.0, math.nan, 2.0, 3.0])])
    assert [len(points.split()) for points in re.findall(r'points="([^"]*)"', chart)] == [1, 2]


def test_a_run_without_validation_shows_none_and_no_best_epoch(tmp_path):
    nothing = {"val_top1": math.nan, "val_top5": math.nan}
    end = summary(top1_best_val=None, best_val_epoch=None)
    page = page_of(tmp_path, end=end, changes=nothing)
    assert "test top-1, last epoch" in page
    assert "best validation" not in page
    assert "Validation accuracy" not in page


def test_a_run_in_training_without_validation_has_a_page(tmp_path):
    page = page_of(tmp_path, end=None, changes={"val_top1": math.nan, "val_top5": math.nan})
    assert "best validation" not in page
