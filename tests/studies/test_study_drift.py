"""The study of drift draws images by strength and lets a judge name their classes."""

import csv
import re

import pytest
from PIL import Image

SMALL = ("--images=4", "--strengths=0.5,1")


def judged(call):
    return f"--judge={call.judge}"


@pytest.mark.slow
def test_the_table_counts_what_the_judge_saw_in_each_image(call):
    text = call("drift", *SMALL, judged(call))
    with (call.out / "drift_images.csv").open() as file:
        images = list(csv.DictReader(file))
    assert [float(row["strength"]) for row in images] == [0.0] * 4 + [0.5] * 4 + [1.0] * 4
    assert all(row["source"] != row["target"] for row in images)
    with (call.out / "drift.csv").open() as file:
        rows = {row["strength"]: row for row in csv.DictReader(file)}
    for strength, name in ((0.0, "start"), (0.5, "0.5"), (1.0, "1")):
        some = [row for row in images if float(row["strength"]) == strength]
        kept = sum(row["seen"] == row["source"] for row in some) / 4
        reached = sum(row["seen"] == row["target"] for row in some) / 4
        assert float(rows[name]["shows the source's class"]) == kept
        assert float(rows[name]["shows the target's class"]) == reached
    assert float(rows["1"]["target's weight in the label"]) == 1
    assert "of the test images right" in text


@pytest.mark.slow
def test_the_same_seed_repeats_every_file_and_another_draws_other_images(call):
    call("drift", *SMALL, judged(call))
    first = call.files()
    assert first.keys() >= {"drift.md", "drift.csv", "drift.png", "drift-diff_mix.png"}
    call("drift", *SMALL, judged(call))
    assert call.files() == first
    call("drift", *SMALL, judged(call), "--seed=1")
    assert call.files()["drift_images.csv"] != first["drift_images.csv"]


@pytest.mark.slow
def test_the_sheet_alone_has_a_column_for_each_strength_and_needs_no_judge(call):
    call.out.mkdir()
    (call.out / "drift.md").write_text("")
    call("drift", *SMALL, "--sheet-only")
    with Image.open(call.out / "drift-diff_mix.png") as sheet:
        two = sheet.width
    call("drift", "--images=4", "--strengths=0.25,0.5,1", "--sheet-only")
    with Image.open(call.out / "drift-diff_mix.png") as sheet:
        assert sheet.width > two
    assert sorted(path.name for path in call.out.iterdir()) == ["drift-diff_mix.png", "drift.md"]


@pytest.mark.slow
def test_other_methods_are_measured_by_name(call):
    text = call("drift", *SMALL, judged(call), "--methods=diff_aug,diff_gen")
    names = [line.split(" | ")[:2] for line in text.splitlines() if line.startswith("| diff")]
    assert names == [["| diff_aug", w] for w in ("start", "0.5", "1")] + [
        ["| diff_gen", w] for w in ("start", "1")
    ]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--images=9"], "--images must be at least 2 and at most 8, the different training"),
        (["--strengths=0.1"], "--strengths.* must be at least 1, got 0.1 \\* 4"),
        (["--strengths=1.5"], "--strengths must be above 0 and at most 1, got"),
        (["--judge=none.safetensors"], "--judge must be a file of weights, got none"),
        (["--methods=diff_mux"], "method.name"),
        (["mixing.synthetic_probability=0"], "method must be one whose images a generator makes"),
        (["devices.generate=none"], "devices.generate must be auto or a device"),
    ],
)
def test_what_cannot_be_studied_is_refused_in_a_line(call, argv, said):
    if not any(word.startswith("--images") for word in argv):
        argv = ["--images=4", *argv]
    assert re.search(said, call.refusal("drift", *argv))
