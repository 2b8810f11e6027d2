import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
from classifier_samples import make_config
from PIL import Image

from online_aug.classifier.class_names import MODEL_FILE, class_metadata
from online_aug.classifier.hub_format import write_hub_config
from online_aug.classifier.model import build_classifier
from online_aug.cli.predict import main
from online_aug.errors import UserError

NAMES = ("auk, great", "Möwe", "tern")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The directory of a finished run, as far as predicting needs it."""
    folder = tmp_path_factory.mktemp("run")
    config = make_config(data={"image_size": 32})
    network = build_classifier(config.classifier, len(NAMES), seed=3)
    content = safetensors.torch.save(network.state_dict(), metadata=class_metadata(NAMES))
    (folder / MODEL_FILE).write_bytes(content)
    write_hub_config(folder, network, config.data)
    return folder


@pytest.fixture
def photos(tmp_path):
    """A folder of three photos, one below the others, and a file that is none."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for number, name in enumerate(("b.png", "a, 1.jpg", "more/c.webp")):
        noise = np.random.default_rng(number).integers(256, size=(40, 50, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    return folder


def rows_of(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_csv_has_a_row_for_each_image(run, photos, capsys):
    main([str(run), str(photos)])
    rows = rows_of(capsys.readouterr().out)
    names = ["a, 1.jpg", "b.png", "more/c.webp"]
    assert [row["image"] for row in rows] == [str(photos / name) for name in names]
    assert {row["rank"] for row in rows} == {"1"}
    assert all(row["class"] in NAMES and 1 / 3 <= float(row["probability"]) <= 1 for row in rows)


def test_top_names_more_classes_the_likeliest_first(run, photos, capsys):
    main([str(run), str(photos / "b.png"), "--top", "2"])
    first, second = rows_of(capsys.readouterr().out)
    assert (first["rank"], second["rank"]) == ("1", "2")
    assert float(first["probability"]) > float(second["probability"])


def test_json_says_the_same_as_csv(run, photos, capsys):
    main([str(run), str(photos), "--top", "9"])
    rows = rows_of(capsys.readouterr().out)
    main([str(run), str(photos), "--top", "9", "--json"])
    found = json.loads(capsys.readouterr().out)
    flat = [
        (image["image"], guess["class"], guess["probability"])
        for image in found["images"]
        for guess in image["predictions"]
    ]
    assert flat == [(r["image"], r["class"], float(r["probability"])) for r in rows]
    assert len(flat) == 9
    assert found["unreadable"] == []


def test_an_image_given_twice_is_predicted_once(run, photos, capsys):
    main([str(run), str(photos / "b.png"), str(photos)])
    assert len(rows_of(capsys.readouterr().out)) == 3


def test_unreadable_images_are_named_and_counted(run, photos, capsys):
    (photos / "cut.jpg").write_bytes((photos / "a, 1.jpg").read_bytes()[:300])
    main([str(run), str(photos), str(photos / "notes.txt")])
    said = capsys.readouterr()
    assert len(rows_of(said.out)) == 3
    assert f"left out, image {photos}/cut.jpg" in said.err
    assert f"left out, image {photos}/notes.txt" in said.err
    assert "warning: 2 of 5 images left out" in said.err


def test_json_lists_unreadable_images(run, photos, capsys):
    (photos / "cut.jpg").write_bytes(b"\xff\xd8\xff")
    main([str(run), str(photos), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert len(found["images"]) == 3
    assert len(found["unreadable"]) == 1
    assert "cut.jpg" in found["unreadable"][0]


def test_strict_refuses_an_unreadable_image_after_all_others(run, photos, capsys):
    (photos / "cut.jpg").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(UserError, match="every image must be readable, 1 of 4 are not"):
        main([str(run), str(photos), "--strict"])
    assert len(rows_of(capsys.readouterr().out)) == 3


def test_nothing_readable_is_one_line(run, photos):
    with pytest.raises(UserError, match="every image must be readable, 1 of 1 are not"):
        main([str(run), str(photos / "notes.txt")])


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["nowhere", "."], "RUN must be a run directory or a published folder, got nowhere"),
        ([".", "."], r"has no model\.safetensors"),
        (["RUN", "nowhere.jpg"], "IMAGES must be files or folders that exist, got nowhere.jpg"),
        (["RUN", "empty"], "IMAGES must be images or folders with some, empty holds none"),
        (["RUN", "--top", "0", "empty"], "K must be a whole number from 1 on, got 0"),
        (["RUN"], "the following arguments are required: IMAGES"),
    ],
)
def test_bad_input_is_one_line(run, tmp_path, monkeypatch, words, reason):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    with pytest.raises(UserError, match=reason):
        main([str(run) if word == "RUN" else word for word in words])


def test_a_pipe_that_is_read_in_part_ends_it_without_a_traceback(run, photos):
    command = [sys.executable, "-m", "online_aug", "predict", str(run), str(photos), "--top=3"]
    done = subprocess.run(
        f"{' '.join(command)} | head -1", shell=True, capture_output=True, text=True, check=False
    )
    assert done.stdout == "image,rank,class,probability\n"
    assert "Traceback" not in done.stderr
