"""`show`: the PNG holds the images that were asked for."""

import json

import numpy as np
import PIL.Image
import pytest
from exchange_samples import assert_refused, bird, write_image

from cache import Entry, Store, content_digest, request_key
from cache.contact_sheet import caption_of


def pixels(path):
    with PIL.Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def holds(sheet, image):
    """Return whether the sheet has the small image, each of its pixels enlarged to a square."""
    factor = -(-160 // max(image.shape[:2]))
    wanted = image.repeat(factor, 0).repeat(factor, 1)
    height, width = wanted.shape[:2]
    places = np.argwhere((sheet == wanted[0, 0]).all(-1))
    return any(
        (sheet[y : y + height, x : x + width] == wanted).all()
        for y, x in places[:5000]
        if (y + height <= sheet.shape[0] and x + width <= sheet.shape[1])
    )


@pytest.fixture
def with_source(tmp_path):
    """A cache with one record, the pixels of its source, and the record's entry."""
    source = write_image(tmp_path / "train/wren/x.png", 7)
    digest = content_digest((tmp_path / "train/wren/x.png").read_bytes())
    entry = Entry(bird(1).request | {"source_digest": digest}, bird(1).image, bird(1).scores)
    with Store(tmp_path / "c") as store:
        store.put_many([entry])
    return tmp_path / "c", source, entry


def test_a_record_is_shown_beside_its_source(with_source, tmp_path, run):
    path, source, entry = with_source
    write_image(tmp_path / "train/wren/another.png", 8)
    key = request_key(entry.request).hex()
    out = tmp_path / "one.png"
    status, printed, _ = run(
        "show", path, key[:8], "--out", out, "--sources", tmp_path / "train", "--json"
    )
    assert status == 0
    sheet = pixels(out)
    assert holds(sheet, source)
    assert holds(sheet, entry.image)
    (row,) = json.loads(printed)["records"]
    assert (row["key"], row["request"]) == (key, entry.request)


def test_a_missing_source_is_said_and_not_invented(with_source, tmp_path, run):
    path, source, entry = with_source
    (tmp_path / "empty").mkdir()
    for number, folder in enumerate(("empty", "train")):
        run("show", path, "--out", tmp_path / f"{number}.png", "--sources", tmp_path / folder)
    first, second = (pixels(tmp_path / f"{number}.png") for number in range(2))
    assert holds(first, entry.image)
    assert not holds(first, source)
    assert holds(second, source)


def test_a_contact_sheet_holds_every_image_asked_for(birds, tmp_path, run):
    status, out, _ = run("show", birds, "--target-label", 2, "--out", tmp_path / "s.png", "--json")
    assert status == 0
    rows = json.loads(out)["records"]
    assert len(rows) == 6
    assert {row["request"]["target_label"] for row in rows} == {2}
    sheet = pixels(tmp_path / "s.png")
    with Store(birds, readonly=True) as store:
        for row in rows:
            assert holds(sheet, store.get(bytes.fromhex(row["key"])).image)


def test_large_and_odd_images_fit_on_a_sheet(tmp_path, run):
    with Store(tmp_path / "c") as store:
        for number, shape in enumerate([(1, 1, 3), (700, 3, 3), (3, 500, 3), (300, 300, 3)]):
            store.put_many(
                [Entry({"n": number, "prompt": "word " * 200}, np.full(shape, 9, np.uint8))]
            )
    assert run("show", tmp_path / "c", "--out", tmp_path / "s.png")[0] == 0
    assert max(pixels(tmp_path / "s.png").shape) < 3000


def test_a_caption_names_method_classes_and_settings():
    request = {
        "method": "diff_mix",
        "source_label": 1,
        "target_label": 0,
        "source_digest": "ab",
        "variant": 3,
        "prompt": "a bird",
        "saliency_version": None,
    }
    assert caption_of(request, "robin", "wren") == [
        "diff_mix",
        "robin to wren",
        "prompt: a bird",
        "variant: 3",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("ffffffffff",), "key must be a record's, got 'ffffffffff' which none starts with"),
        (("",), "key must be one record's, got '' which several start with; give more digits"),
        (("xyz",), "key must be at most 64 hexadecimal digits, got 'xyz'"),
        (("--target-label", 9), "there must be a record to show, got none that fits"),
        (("--sources", "none"), "sources must be a folder, got none"),
        (("--classes", "none"), "classes must be a readable text file or folder, got none"),
        (("--limit", 0), "there must be a record to show"),
    ],
)
def test_a_request_that_cannot_be_shown_is_refused(arguments, message, birds, tmp_path, run):
    result = run("show", birds, *arguments, "--out", tmp_path / "s.png")
    assert_refused(result, message)
    assert not (tmp_path / "s.png").exists()


def test_no_file_is_replaced_without_force(birds, tmp_path, run):
    (tmp_path / "s.png").write_text("mine")
    assert_refused(run("show", birds, "--out", tmp_path / "s.png"), "target must not exist")
    assert (tmp_path / "s.png").read_text() == "mine"
    assert run("show", birds, "--out", tmp_path / "s.png", "--force")[0] == 0
    assert pixels(tmp_path / "s.png").size
