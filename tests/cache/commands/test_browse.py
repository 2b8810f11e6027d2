"""`show --html`: one file with what was asked for, in which no text of a record can act."""

import json
from base64 import b64decode
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import PIL.Image
import pytest
from cache_samples import overwrite
from exchange_samples import assert_refused, write_image

from cache import Entry, Rejection, Store, content_digest, request_key
from cache.html_page import entries
from cache.html_page.entries import Entries
from cache.html_page.page import write_page

HOSTILE = "</script><script>document.title='x'</script><img src=x onerror=alert(1)>\u2028"


class Page(HTMLParser):
    """What a page is made of."""

    def __init__(self, path):
        super().__init__(convert_charrefs=True)
        self.tags, self.texts, self.attributes, self.last = [], {}, [], ""
        self.feed(path.read_text(encoding="utf-8"))
        self.rows, self.sources = (json.loads(self.texts[name]) for name in ("rows", "sources"))

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attributes]
        self.last = dict(attributes).get("id", tag)

    def handle_data(self, data):
        self.texts[self.last] = self.texts.get(self.last, "") + data


def decoded(picture):
    with PIL.Image.open(BytesIO(b64decode(picture))) as image:
        assert image.format == "WEBP"
        return np.asarray(image)


@pytest.fixture
def mixed(tmp_path):
    """A cache of six images made from two sources, and three rejections, one with a picture."""
    write_image(tmp_path / "train/wren/x.png", 7)
    digest = content_digest((tmp_path / "train/wren/x.png").read_bytes())
    names = {"data_set": "birds-0a", "source_class": "wren", "target_class": HOSTILE}
    with Store(tmp_path / "c", codec="png", durability="process") as store:
        for number in range(9):
            request = {
                "method": ("diff_mix", "sgd_mix")[number % 2],
                "source_label": 0,
                "target_label": 1,
                "strength": (0.3, 0.7)[number % 2],
                "prompt": HOSTILE,
                "noise_seed": 2**70 + number,
                "source_digest": digest if number < 4 else "0" * 32,
            }
            if number < 6:
                image = np.full((300, 200, 3), 40 * number, np.uint8)
                store.put_many([Entry(request, image, {"clip": 0.25, "top": np.inf}, names)])
            else:
                picture = PIL.Image.new("RGB", (8, 8))
                buffer = BytesIO()
                picture.save(buffer, "WEBP")
                kept = buffer.getvalue() if number == 8 else None
                store.reject(
                    request_key(request),
                    request,
                    Rejection("blank" if number % 2 else HOSTILE, kept, {"clip": 0.125}),
                )
    return tmp_path / "c"


def page_of(run, cache, tmp_path, *options):
    status, out, _ = run("show", cache, "--html", tmp_path / "p.html", "--json", *options)
    assert status == 0
    return Page(tmp_path / "p.html"), json.loads(out)


def test_every_image_and_rejection_is_a_row_with_a_picture(mixed, tmp_path, run):
    page, report = page_of(run, mixed, tmp_path)
    assert (report["images"], report["rejected"], report["is_cut"]) == (6, 3, False)
    assert report["bytes"] == (tmp_path / "p.html").stat().st_size
    with Store(mixed, readonly=True) as store:
        for row in page.rows[:6]:
            record = store.get(bytes.fromhex(row["key"]))
            picture = decoded(row["picture"])
            assert picture.shape == (160, 107, 3)
            assert abs(picture.astype(int) - record.image[0, 0]).max() < 4
            assert row["fields"]["noise_seed"] == str(record.request["noise_seed"])
            assert row["scores"] == {"clip": 0.25, "top": None}
    assert [row["status"] for row in page.rows] == ["accepted"] * 6 + ["rejected"] * 3
    assert [row["picture"] is None for row in page.rows[6:]] == [False, True, True]
    assert all(row["scores"] == {"clip": 0.125} for row in page.rows[6:])
    assert {(row["source"], row["target"]) for row in page.rows} == {("wren", HOSTILE)}


def test_sources_are_shown_once_each_beside_all_images_made_from_them(mixed, tmp_path, run):
    page, report = page_of(run, mixed, tmp_path, "--sources", tmp_path / "train")
    assert report["sources"] == len(page.sources) == 1
    assert [row.get("source_picture") for row in page.rows] == [0] * 4 + [None] * 5
    assert decoded(page.sources[0]).shape == (6, 5, 3)


def test_the_page_loads_nothing_and_no_text_of_a_record_is_markup(mixed, tmp_path, run):
    page, _ = page_of(run, mixed, tmp_path, "--sources", tmp_path / "train")
    assert "img" not in page.tags
    assert page.tags.count("script") == 3
    assert page.texts["title"] == f"Images of {mixed}"
    loading = {"src", "href", "action", "onload", "onerror", "style"}
    assert [name for _, name, _ in page.attributes if name in loading] == []
    (policy,) = [value for _, _, value in page.attributes if value and "default-src" in value]
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert page.rows[0]["prompt"] == HOSTILE


def test_a_hostile_path_is_text(tmp_path):
    write_page(tmp_path / "p.html", HOSTILE, HOSTILE, Entries())
    page = Page(tmp_path / "p.html")
    assert (page.texts["title"], page.texts["h1"]) == (HOSTILE, HOSTILE)
    assert page.tags.count("script") == 3
    assert (page.rows, page.sources) == ([], [])


@pytest.mark.parametrize(
    ("options", "images", "rejected"),
    [
        (("--method", "sgd_mix"), 3, 1),
        (("--strength", "0.3"), 3, 2),
        (("--target-label", "0"), 0, 0),
        (("--limit", "2"), 2, 2),
        (("--data-set", "birds"), 6, 3),
    ],
)
def test_only_what_was_asked_for_is_shown(options, images, rejected, mixed, tmp_path, run):
    if not images:
        result = run("show", mixed, "--html", tmp_path / "p.html", *options)
        assert_refused(result, "there must be an image to show, got none that fits in")
        assert not (tmp_path / "p.html").exists()
        return
    _, report = page_of(run, mixed, tmp_path, *options)
    assert (report["images"], report["rejected"]) == (images, rejected)


def test_rejections_are_left_out_if_their_data_set_is_in_doubt(mixed, tmp_path, run):
    with Store(mixed) as store:
        store.put_many([Entry({"n": 1}, np.zeros((2, 2, 3), np.uint8), {}, {"data_set": "pets"})])
    _, report = page_of(run, mixed, tmp_path, "--data-set", "birds")
    assert (report["images"], report["rejected"]) == (6, 0)


def test_a_page_ends_before_it_is_too_large(mixed, tmp_path, run, monkeypatch):
    monkeypatch.setattr(entries, "MAX_PICTURES_MIB", 300 / 2**20)
    page, report = page_of(run, mixed, tmp_path)
    assert 0 < len(page.rows) < 9
    assert report["is_cut"]
    _, out, _ = run("show", mixed, "--html", tmp_path / "q.html")
    assert "left out" in out


def test_a_record_that_cannot_be_read_is_a_row_that_says_so(mixed, tmp_path, run):
    with Store(mixed, readonly=True) as store:
        key = store.tail()[2][1]
    overwrite(mixed, b"records", key, lambda value: value[:-1] + b"?")
    page, _ = page_of(run, mixed, tmp_path)
    (row,) = [row for row in page.rows if row["status"] == "unreadable"]
    assert row["key"] == key.hex()
    assert "checksum" in row["reason"]


def test_no_page_is_replaced_without_force(mixed, tmp_path, run):
    (tmp_path / "p.html").write_text("mine")
    arguments = ("show", mixed, "--html", tmp_path / "p.html")
    assert_refused(run(*arguments), "target must not exist")
    assert (tmp_path / "p.html").read_text() == "mine"
    assert run(*arguments, "--force")[0] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("ab12",), "--html must stand without KEY and --out"),
        (("--out", "x.png"), "--html must stand without KEY and --out"),
        (("--sources", "none"), "sources must be a folder, got none"),
    ],
)
def test_options_that_do_not_fit_a_page_are_refused(options, message, mixed, tmp_path, run):
    assert_refused(run("show", mixed, *options, "--html", tmp_path / "p.html"), message)
    assert not (tmp_path / "p.html").exists()
